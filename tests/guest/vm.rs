//! A Linux guest in QEMU, without hardware acceleration.
//!
//! ```text
//! boot ─► ready: runs commands from a serial line ─► killed on drop
//! ```

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::common::eventually;

/// Boot timeout; a boot takes 10 to 20 s on an idle machine.
const BOOT: Duration = Duration::from_secs(120);

/// Timeout of every command.
const BOUND: Duration = Duration::from_secs(120);

/// The PCI bus for hot-plugged devices.
pub const BUS: &str = "pci.opi.0";

/// The QEMU to use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Qemu {
    /// The installed one, of Debian 12: supports vhost-user.
    Installed,
    /// The one in the guest image: supports vfio-user too.
    Newest,
}

/// The hardware of a VM.
pub struct Hardware {
    /// The QEMU to use.
    pub qemu: Qemu,
    /// CPU affinity; the target uses core 0.
    pub cores: &'static str,
    /// Guest memory.
    pub mem_mib: u32,
    /// Whether the guest has the program under test, as `/opi/run`.
    pub with_program: bool,
    /// Additional kernel command line.
    pub kernel: &'static str,
    /// Additional QEMU arguments, such as devices.
    pub args: Vec<String>,
}

impl Hardware {
    /// A VM with shared memory and an empty bus for hot-plug.
    pub fn pluggable(qemu: Qemu) -> Self {
        let args =
            "-machine pc,memory-backend=ram -object memory-backend-memfd,id=ram,size=768M,share=on";
        let bus = format!("-device pci-bridge,id={BUS},chassis_nr=1");
        Self {
            qemu,
            cores: "1",
            mem_mib: 768,
            with_program: false,
            kernel: "",
            args: words(&format!("{args} {bus} {}", network(&[]))),
        }
    }
}

/// Splits a string at white space.
pub fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Returns the arguments of a network card: the guest reaches the host's loopback at 10.0.2.2, and
/// (host, guest) ports are forwarded from the host's loopback.
pub fn network(ports: &[(u16, u16)]) -> String {
    let forward = |(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
    let forwards: String = ports.iter().copied().map(forward).collect();
    format!("-netdev user,id=net{forwards} -device virtio-net-pci,netdev=net,romfile=")
}

/// Returns the socket of the VM's monitor (QMP).
pub fn monitor(dir: &Path) -> PathBuf {
    dir.join("qmp")
}

/// Creates a directory for the sockets of one VM at a time.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("opi-vm-")
        .tempdir()
        .expect("a temporary directory")
}

/// A running guest.
pub struct Vm {
    qemu: Child,
    dir: PathBuf,
    line: BufReader<UnixStream>,
}

impl Vm {
    /// Boots a VM with its sockets in `dir`, and waits until it accepts commands.
    pub async fn boot(dir: &Path, hardware: &Hardware) -> Self {
        let image = image();
        let initrd = make_initrd(&image, dir, hardware.with_program);
        for socket in [monitor(dir), dir.join("line")] {
            // Left over from the previous VM.
            let _ = std::fs::remove_file(socket);
        }
        // QEMU may run in a chroot that shares only /tmp.
        std::fs::copy(image.join("vmlinuz"), dir.join("vmlinuz")).expect("the image has a kernel");
        let log = std::fs::File::create(dir.join("qemu")).expect("a log file");
        let mut qemu = Command::new("taskset")
            .args(["-c", hardware.cores])
            .args(program(hardware.qemu, &image))
            // One thread for all CPUs: with one thread each, a kernel that patched its own code during
            // boot was seen to trap.
            .args(words(
                "-accel tcg,thread=single -cpu max -nodefaults -display none -no-reboot",
            ))
            .args(["-m", &format!("{}M", hardware.mem_mib)])
            .arg("-kernel")
            .arg(dir.join("vmlinuz"))
            .arg("-initrd")
            .arg(initrd)
            .args([
                "-append",
                &format!("console=ttyS0 quiet panic=-1 {}", hardware.kernel),
            ])
            .args([
                "-serial",
                &format!("file:{}", dir.join("console").display()),
            ])
            .args(["-serial", &server(&dir.join("line"))])
            .args(["-qmp", &server(&monitor(dir))])
            .args(&hardware.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("one file for both"))
            .stderr(log)
            .spawn()
            .expect("taskset is installed");
        let stream = eventually("QEMU starts", BOUND, async || {
            if let Some(status) = qemu.try_wait().expect("a child can be waited for") {
                panic!("QEMU ended with {status}: {}", read(&dir.join("qemu")));
            }
            UnixStream::connect(dir.join("line")).await.ok()
        })
        .await;
        let mut vm = Self {
            qemu,
            dir: dir.to_owned(),
            line: BufReader::new(stream),
        };
        let ready = tokio::time::timeout(BOOT, vm.answer()).await;
        let (_, status) =
            ready.unwrap_or_else(|_| panic!("no boot within {BOOT:?}: {}", vm.console()));
        assert_eq!(status, "ready");
        vm
    }

    /// Runs a one-line shell command in the guest; returns its output, as an error if its status is not
    /// 0.
    pub async fn run(&mut self, command: &str) -> Result<String, String> {
        let sent = self
            .line
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())
            .await;
        sent.unwrap_or_else(|error| panic!("{command}: {error}: {}", self.console()));
        let answer = tokio::time::timeout(BOUND, self.answer()).await;
        let (output, status) = answer.unwrap_or_else(|_| {
            panic!("{command}: no result within {BOUND:?}: {}", self.console())
        });
        if status == "0" {
            Ok(output)
        } else {
            Err(format!("{command}: status {status}\n{output}"))
        }
    }

    /// Runs a command that must succeed.
    pub async fn ok(&mut self, command: &str) -> String {
        let output = self.run(command).await;
        output.unwrap_or_else(|error| panic!("{error}\n{}", self.console()))
    }

    /// Retries a command until it succeeds.
    pub async fn until(&mut self, command: &str) -> String {
        let line = &mut *self;
        eventually(command, BOUND, async || line.run(command).await.ok()).await
    }

    /// Waits for a block device, writes its first 4 MiB, reads them back and compares.
    pub async fn verify(&mut self, device: &str) {
        self.until(&format!("test -b {device}")).await;
        let report = self
            .ok(&format!(
                "fio --name=v --filename={device} --direct=1 --rw=randwrite --bs=4k --size=4M --ioengine=libaio \
                 --iodepth=8 --verify=crc32c --verify_fatal=1 --do_verify=1"
            ))
            .await;
        assert!(report.contains("err= 0"), "{report}");
        assert!(
            report.contains("issued rwts: total=1024,1024,0,0"),
            "not all blocks were written and read: {report}"
        );
    }

    /// Returns `None` while QEMU runs, otherwise whether it was terminated by a signal (an abort).
    pub fn ended(&mut self) -> Option<bool> {
        let status = self.qemu.try_wait().expect("a child can be waited for")?;
        Some(status.signal().is_some())
    }

    /// Kills QEMU.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    /// Reads up to the line that ends a command's output; returns the output and the status.
    async fn answer(&mut self) -> (String, String) {
        let mut output = String::new();
        loop {
            let mut line = Vec::new();
            let read = self.line.read_until(b'\n', &mut line).await;
            assert!(
                read.is_ok_and(|read| read > 0),
                "the serial line was closed: {}",
                self.console()
            );
            let line = String::from_utf8_lossy(&line);
            match line.trim_end().strip_prefix("--- ") {
                Some(status) => return (output, status.to_owned()),
                None => output += &line,
            }
        }
    }

    fn console(&self) -> String {
        format!(
            "{}\n{}",
            read(&self.dir.join("qemu")),
            read(&self.dir.join("console"))
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- QEMU and the guest's console ---\n{}", self.console());
        }
    }
}

fn image() -> PathBuf {
    let dir = std::env::var_os("OPI_SPDK_GUEST");
    dir.expect("OPI_SPDK_GUEST is not set: run these tests through scripts/test.sh --guest")
        .into()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scripts")
        .join(name)
}

fn program(qemu: Qemu, image: &Path) -> Vec<OsString> {
    match qemu {
        Qemu::Installed => vec!["qemu-system-x86_64".into()],
        Qemu::Newest => vec!["bash".into(), script("guest-qemu.sh").into(), image.into()],
    }
}

fn make_initrd(image: &Path, dir: &Path, with_program: bool) -> PathBuf {
    let initrd = dir.join("initrd");
    let mut command = Command::new("bash");
    command
        .arg(script("guest-initrd.sh"))
        .arg(image)
        .arg(&initrd);
    if with_program {
        command.arg(env!("CARGO_BIN_EXE_opi-spdk"));
    }
    let status = command.status().expect("bash is installed");
    assert!(status.success(), "guest-initrd.sh: {status}");
    initrd
}

fn server(path: &Path) -> String {
    format!("unix:{},server=on,wait=off", path.display())
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
