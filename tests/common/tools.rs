//! Real initiators: SPDK's own tools and fio with SPDK's plugin, on core 1 (the target has core 0).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// No tool runs longer; a hang is an error.
const BOUND: Duration = Duration::from_secs(40);

/// Memory of an initiator, MiB: its bdev layer alone takes more than 256.
const MEMORY: u32 = 512;

/// How a host reaches one subsystem.
#[derive(Clone, Debug)]
pub struct Initiator {
    trtype: &'static str,
    traddr: String,
    port: Option<u16>,
    nqn: String,
    hostnqn: Option<String>,
}

impl Initiator {
    /// Over NVMe/TCP on loopback.
    pub fn tcp(port: u16, nqn: &str) -> Self {
        Self {
            trtype: "TCP",
            traddr: "127.0.0.1".into(),
            port: Some(port),
            nqn: nqn.into(),
            hostnqn: None,
        }
    }

    /// Over the vfio-user socket `dir/cntrl`; both ends need hugepages.
    pub fn vfio_user(dir: &Path, nqn: &str) -> Self {
        Self {
            trtype: "VFIOUSER",
            traddr: dir.display().to_string(),
            port: None,
            nqn: nqn.into(),
            hostnqn: None,
        }
    }

    /// As the host of this name.
    pub fn with_host(mut self, hostnqn: &str) -> Self {
        self.hostnqn = Some(hostnqn.into());
        self
    }

    /// In the form of SPDK's command lines.
    fn transport_id(&self) -> String {
        let mut id = format!(
            "trtype:{} traddr:{} subnqn:{}",
            self.trtype, self.traddr, self.nqn
        );
        if let Some(port) = self.port {
            id += &format!(" adrfam:IPv4 trsvcid:{port}");
        }
        if let Some(hostnqn) = &self.hostnqn {
            id += &format!(" hostnqn:{hostnqn}");
        }
        id
    }

    /// A configuration in which namespace N is the bdev `RemotenN`.
    fn config(&self, dir: &Path) -> PathBuf {
        let mut params = json!({
            "name": "Remote", "trtype": self.trtype, "traddr": self.traddr, "subnqn": self.nqn,
        });
        if let Some(port) = self.port {
            params["adrfam"] = "ipv4".into();
            params["trsvcid"] = port.to_string().into();
        }
        if let Some(hostnqn) = &self.hostnqn {
            params["hostnqn"] = hostnqn.as_str().into();
        }
        let config = json!({ "subsystems": [{ "subsystem": "bdev", "config": [
            { "method": "bdev_nvme_attach_controller", "params": params },
            { "method": "bdev_wait_for_examine" },
        ]}]});
        let path = dir.join("initiator.json");
        std::fs::write(&path, config.to_string()).expect("the directory is writable");
        path
    }

    /// Memory flags: what vfio-user shares has to be one file of hugepages.
    fn memory(&self) -> Vec<String> {
        let size = ["-s".to_owned(), MEMORY.to_string()];
        match self.port {
            Some(_) => [size.as_slice(), &["--no-huge".to_owned()]].concat(),
            None => [size.as_slice(), &["-g".to_owned()]].concat(),
        }
    }

    fn app(&self, program: &str, dir: &Path) -> Tool {
        Tool::new(program)
            // A peer of the target may have that core too.
            .args(["-m", "0x2", "--disable-cpumask-locks", "--json"])
            .arg(self.config(dir))
            .args(self.memory())
    }

    /// Writes patterns to every namespace, reads them back and compares, for `seconds`.
    pub async fn verify(&self, dir: &Path, seconds: u32) -> Result<String, String> {
        let tool = self.app("bdevperf", dir);
        let tool = tool.args(["-q", "16", "-o", "4096", "-w", "verify", "-t"]);
        tool.arg(seconds.to_string()).run().await
    }

    /// Runs one workload (`unmap`, `write_zeroes`, `flush`...) over every namespace.
    pub async fn workload(&self, dir: &Path, kind: &str) -> Result<String, String> {
        let tool = self.app("bdevperf", dir);
        tool.args(["-q", "4", "-o", "4096", "-t", "1", "-w", kind])
            .run()
            .await
    }

    /// Copies a file onto a namespace.
    pub async fn copy_in(&self, dir: &Path, file: &Path, nsid: u32) -> Result<String, String> {
        let tool = self.app("spdk_dd", dir).arg("--if").arg(file);
        let tool = tool.args(["--ob", &format!("Remoten{nsid}"), "--bs", "65536"]);
        tool.run().await
    }

    /// Copies the first `kib` of a namespace to a file.
    pub async fn copy_out(
        &self,
        dir: &Path,
        nsid: u32,
        kib: u32,
        file: &Path,
    ) -> Result<String, String> {
        let tool = self.app("spdk_dd", dir).arg("--of").arg(file);
        let count = (kib / 64).to_string();
        let bdev = format!("Remoten{nsid}");
        tool.args(["--ib", &bdev, "--bs", "65536", "--count", &count])
            .run()
            .await
    }

    /// What a host reads of the controller and its namespaces.
    pub async fn identify(&self) -> Result<String, String> {
        let tool = Tool::new("spdk_nvme_identify").args(["-p", "1"]);
        let text = tool
            .args(self.memory())
            .args(["-r", &self.transport_id()])
            .run()
            .await?;
        // It reports a failed connection in words only.
        if text.contains("Serial Number:") {
            Ok(text)
        } else {
            Err(text)
        }
    }

    /// Load, mixed reads and writes, for `seconds`.
    pub async fn perf(&self, seconds: u32) -> Result<String, String> {
        let text = self.perf_tool(seconds).run().await?;
        if text.contains("Total") {
            Ok(text)
        } else {
            Err(text)
        }
    }

    /// The same in the background, once I/O has begun.
    pub async fn load(&self, seconds: u32) -> Running {
        let mut running = self.perf_tool(seconds).spawn();
        running.says("Launching workers").await;
        running
    }

    fn perf_tool(&self, seconds: u32) -> Tool {
        // Into a pipe it would write when it ends.
        let tool = Tool::at("stdbuf".into())
            .arg("-oL")
            .arg(tools_dir().join("spdk_nvme_perf"));
        let tool = tool.args(self.memory());
        tool.args([
            "-c", "0x2", "-q", "8", "-o", "4096", "-w", "randrw", "-M", "50", "-t",
        ])
        .arg(seconds.to_string())
        .args(["-r", &self.transport_id()])
    }

    /// fio with SPDK's plugin: writes `size` of namespace 1, then reads it and checks each block's sum.
    pub async fn fio_verify(&self, dir: &Path, size: &str) -> Result<String, String> {
        let plugin = tools_dir().join("spdk_nvme");
        let filename = self
            .transport_id()
            .replace("subnqn:", "subnqn=")
            .replace("nqn:", "nqn=");
        let filename = ["trtype", "traddr", "adrfam", "trsvcid"]
            .iter()
            .fold(filename, |name, key| {
                name.replace(&format!("{key}:"), &format!("{key}="))
            })
            .replace(':', "\\:");
        let job = format!(
            "[global]\nioengine={}\nthread=1\ngroup_reporting=1\ndirect=1\nmem_size_mb={MEMORY}\n\
             cpus_allowed=1\nfilename={filename} ns=1\nsize={size}\nbs=4k\niodepth=16\n\
             verify=crc32c\nverify_fatal=1\nverify_state_save=0\n[write-and-verify]\nrw=randwrite\ndo_verify=1\n",
            plugin.display(),
        );
        let path = dir.join("verify.fio");
        std::fs::write(&path, job).expect("the directory is writable");
        let text = Tool::at(PathBuf::from("fio")).arg(path).run().await?;
        if text.contains("err= 0") {
            Ok(text)
        } else {
            Err(text)
        }
    }
}

/// One command line.
pub struct Tool {
    program: PathBuf,
    args: Vec<OsString>,
}

impl Tool {
    /// One of SPDK's tools.
    pub fn new(name: &str) -> Self {
        Self::at(tools_dir().join(name))
    }

    /// Any program.
    pub fn at(program: PathBuf) -> Self {
        Self {
            program,
            args: Vec::new(),
        }
    }

    /// SPDK's client of the JSON-RPC socket.
    pub fn rpc(socket: &Path) -> Self {
        let program =
            std::env::var_os("SPDK_RPC").expect("SPDK_RPC is not set: run scripts/test.sh");
        Self::at(program.into()).arg("-s").arg(socket)
    }

    /// With one more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// With more arguments.
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Runs it to its end; all that it wrote, as an error when its status is not 0.
    pub async fn run(self) -> Result<String, String> {
        let running = self.spawn();
        running.ended().await
    }

    /// Starts it; it is killed when the test ends first.
    pub fn spawn(self) -> Running {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().expect("one pipe for both"))
            .stderr(writer)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", self.program.display()));
        let reader =
            tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).expect("a pipe");
        Running {
            name: self.program.display().to_string(),
            pid: child.id(),
            child,
            lines: BufReader::new(reader),
            text: String::new(),
        }
    }
}

/// A tool that runs.
pub struct Running {
    name: String,
    pid: Option<u32>,
    child: Child,
    lines: BufReader<tokio::net::unix::pipe::Receiver>,
    text: String,
}

impl Running {
    /// Waits until it has written this.
    pub async fn says(&mut self, what: &str) {
        while !self.text.contains(what) {
            let more = self.line().await;
            assert!(more, "{} ended before {what:?}:\n{}", self.name, self.text);
        }
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Result<String, String> {
        while self.line().await {}
        let status = tokio::time::timeout(BOUND, self.child.wait()).await;
        let status = status
            .expect("it ends with its output")
            .expect("a child can be waited for");
        if status.success() {
            Ok(std::mem::take(&mut self.text))
        } else {
            Err(format!("{}: {status}\n{}", self.name, self.text))
        }
    }

    async fn line(&mut self) -> bool {
        let mut line = Vec::new();
        let read = tokio::time::timeout(BOUND, self.lines.read_until(b'\n', &mut line)).await;
        let read = read
            .unwrap_or_else(|_| panic!("{} is silent for {BOUND:?}:\n{}", self.name, self.text));
        self.text += &String::from_utf8_lossy(&line);
        read.expect("a pipe can be read") > 0
    }
}

/// With `-g` SPDK leaves its hugepages' file to the next that starts.
impl Drop for Running {
    fn drop(&mut self) {
        let Some(pid) = self.pid else { return };
        let _ = std::fs::remove_file(format!("/dev/hugepages/spdk_pid{pid}map_0"));
    }
}

fn tools_dir() -> PathBuf {
    let dir = std::env::var_os("SPDK_TOOLS");
    dir.expect("SPDK_TOOLS is not set: run the tests through scripts/test.sh, which builds them")
        .into()
}

/// Fails the test, in words, when there are not enough free hugepages for SPDK.
pub fn hugepages_or_fail(mib: u32) {
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let text = std::fs::read_to_string(pool).unwrap_or_default();
    let free: u32 = text.trim().parse().unwrap_or(0);
    assert!(
        free * 2 >= mib,
        "this test needs {mib} MiB of hugepages and {} are free: run scripts/hugepages.sh",
        free * 2
    );
}
