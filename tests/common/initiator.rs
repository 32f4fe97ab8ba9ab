//! NVMe hosts: SPDK's own tools, and fio with SPDK's plugin, on core 1 (the target runs on core 0).

use std::path::{Path, PathBuf};

use serde_json::json;

use super::driver::Driver;
use super::tools::{Running, Tool, tools_dir};

/// Memory of a tool without a bdev layer, MiB.
const MEMORY: u32 = 512;

/// How a host connects to one subsystem.
#[derive(Clone, Debug)]
pub struct Initiator {
    trtype: &'static str,
    traddr: String,
    port: Option<u16>,
    nqn: String,
    hostnqn: Option<String>,
    psk: Option<PathBuf>,
    dhchap: Option<PathBuf>,
    dhchap_ctrlr: Option<PathBuf>,
    /// Options of SPDK's NVMe driver.
    options: Option<serde_json::Value>,
}

impl Initiator {
    /// Connects over NVMe/TCP on loopback.
    pub fn tcp(port: u16, nqn: &str) -> Self {
        Self {
            trtype: "TCP",
            traddr: "127.0.0.1".into(),
            port: Some(port),
            nqn: nqn.into(),
            hostnqn: None,
            psk: None,
            dhchap: None,
            dhchap_ctrlr: None,
            options: None,
        }
    }

    /// Connects over the vfio-user socket `dir/cntrl`; both sides need hugepages.
    pub fn vfio_user(dir: &Path, nqn: &str) -> Self {
        Self {
            trtype: "VFIOUSER",
            traddr: dir.display().to_string(),
            port: None,
            nqn: nqn.into(),
            hostnqn: None,
            psk: None,
            dhchap: None,
            dhchap_ctrlr: None,
            options: None,
        }
    }

    /// Sets the host NQN.
    pub fn with_host(mut self, hostnqn: &str) -> Self {
        self.hostnqn = Some(hostnqn.into());
        self
    }

    /// Enables TLS with the pre-shared key in this file; only for the tools that use bdevs.
    pub fn with_psk(mut self, file: &Path) -> Self {
        self.psk = Some(file.to_owned());
        self
    }

    /// Authenticates with the DH-HMAC-CHAP key in this file; only for the tools that use bdevs.
    pub fn with_dhchap(mut self, file: &Path) -> Self {
        self.dhchap = Some(file.to_owned());
        self
    }

    /// Requires the controller to authenticate with the key in this file (bidirectional authentication).
    pub fn with_dhchap_ctrlr(mut self, file: &Path) -> Self {
        self.dhchap_ctrlr = Some(file.to_owned());
        self
    }

    /// Offers only this hash and this DH group.
    pub fn with_dhchap_of(mut self, hash: &str, group: &str) -> Self {
        self.options = Some(json!({ "dhchap_digests": [hash], "dhchap_dhgroups": [group] }));
        self
    }

    /// Returns the transport ID in the format of SPDK's command lines.
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

    /// Returns the host's bdev driver: namespace N is its bdev `RemotenN`.
    pub fn driver(&self) -> Driver {
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
        let keys = [
            ("psk", &self.psk),
            ("dhchap_key", &self.dhchap),
            ("dhchap_ctrlr_key", &self.dhchap_ctrlr),
        ];
        for (name, key) in keys {
            if key.is_some() {
                params[name] = name.into();
            }
        }
        let method = "bdev_nvme_attach_controller";
        let mut driver = Driver::attaching(method, params, self.port.is_none());
        for (name, key) in keys {
            if let Some(file) = key {
                driver = driver.with_key(name, file);
            }
        }
        match &self.options {
            Some(options) => driver.with_nvme_options(options.clone()),
            None => driver,
        }
    }

    /// Returns the memory flags: memory shared over vfio-user must be a single hugepage file.
    fn memory(&self) -> Vec<String> {
        let size = ["-s".to_owned(), MEMORY.to_string()];
        match self.port {
            Some(_) => [size.as_slice(), &["--no-huge".to_owned()]].concat(),
            None => [size.as_slice(), &["-g".to_owned()]].concat(),
        }
    }

    /// Writes a pattern to every namespace, reads it back and compares, for `seconds`.
    pub async fn verify(&self, dir: &Path, seconds: u32) -> Result<String, String> {
        self.driver().verify(dir, seconds).await
    }

    /// Runs one workload (`unmap`, `write_zeroes`, `flush`...) on every namespace.
    pub async fn workload(&self, dir: &Path, kind: &str) -> Result<String, String> {
        self.driver().workload(dir, kind).await
    }

    /// Copies a file to a namespace.
    pub async fn copy_in(&self, dir: &Path, file: &Path, nsid: u32) -> Result<String, String> {
        let disk = format!("Remoten{nsid}");
        self.driver().copy_in(dir, file, &disk).await
    }

    /// Copies the first `kib` of a namespace to a file.
    pub async fn copy_out(
        &self,
        dir: &Path,
        nsid: u32,
        kib: u32,
        file: &Path,
    ) -> Result<String, String> {
        let disk = format!("Remoten{nsid}");
        self.driver().copy_out(dir, &disk, kib, file).await
    }

    /// Returns what spdk_nvme_identify prints about the controller and its namespaces.
    pub async fn identify(&self) -> Result<String, String> {
        let tool = Tool::new("spdk_nvme_identify").args(["-p", "1"]);
        let text = tool
            .args(self.memory())
            .args(["-r", &self.transport_id()])
            .run()
            .await?;
        // The tool exits with status 0 even if the connection failed.
        if text.contains("Serial Number:") {
            Ok(text)
        } else {
            Err(text)
        }
    }

    /// Runs mixed random reads and writes for `seconds`.
    pub async fn perf(&self, seconds: u32) -> Result<String, String> {
        let text = self.perf_tool("randrw", seconds).run().await?;
        if text.contains("Total") {
            Ok(text)
        } else {
            Err(text)
        }
    }

    /// Starts mixed random reads and writes in the background; returns once the tool starts to connect
    /// its queues.
    pub async fn load(&self, seconds: u32) -> Running {
        self.load_of("randrw", seconds).await
    }

    /// Starts one workload (`randread`...) in the background; returns once the tool starts to connect
    /// its queues.
    pub async fn load_of(&self, kind: &str, seconds: u32) -> Running {
        let mut running = self.perf_tool(kind, seconds).spawn();
        running.says("Launching workers").await;
        running
    }

    fn perf_tool(&self, kind: &str, seconds: u32) -> Tool {
        // Line buffering: into a pipe, the tool's output would arrive only at exit.
        let tool = Tool::at("stdbuf".into())
            .arg("-oL")
            .arg(tools_dir().join("spdk_nvme_perf"));
        let tool = tool.args(self.memory());
        tool.args([
            "-c", "0x2", "-q", "8", "-o", "4096", "-M", "50", "-w", kind, "-t",
        ])
        .arg(seconds.to_string())
        .args(["-r", &self.transport_id()])
    }

    /// Runs fio with SPDK's plugin: writes `size` of namespace 1, then reads it back and verifies each
    /// block's checksum.
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
