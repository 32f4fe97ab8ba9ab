//! virtio drivers in user space: SPDK's own, which find a device at its vhost-user socket just as a
//! virtual machine does.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::tools::{Running, Tool};

/// Memory of a driver's process, MiB, in hugepages: the device reads and writes it.
const MEMORY: &str = "512";

/// Queues that a driver asks for: one to each of its disks, and for some devices others.
const QUEUES: u32 = 8;

/// How a machine reaches one device.
#[derive(Clone, Debug)]
pub struct Virtio {
    socket: PathBuf,
    kind: &'static str,
}

impl Virtio {
    /// A virtio-blk device; its disk is the bdev `Disk`.
    pub fn blk(socket: PathBuf) -> Self {
        Self {
            socket,
            kind: "blk",
        }
    }

    /// A virtio-scsi device; the disk at SCSI target N is the bdev `DisktN`.
    pub fn scsi(socket: PathBuf) -> Self {
        Self {
            socket,
            kind: "scsi",
        }
    }

    fn app(&self, program: &str, dir: &Path) -> Tool {
        let attach = json!({
            "name": "Disk", "trtype": "user", "traddr": self.socket, "dev_type": self.kind,
            "vq_count": QUEUES, "vq_size": 256,
        });
        let config = json!({ "subsystems": [{ "subsystem": "bdev", "config": [
            { "method": "bdev_virtio_attach_controller", "params": attach },
            { "method": "bdev_wait_for_examine" },
        ]}]});
        let path = dir.join(format!("{}-driver.json", self.kind));
        std::fs::write(&path, config.to_string()).expect("the directory is writable");
        let tool = Tool::new(program).args(["-m", "0x2", "-g", "-s", MEMORY, "--json"]);
        tool.arg(path)
    }

    fn load_tool(&self, dir: &Path, kind: &str, seconds: u32) -> Tool {
        let tool = self
            .app("bdevperf", dir)
            .args(["-q", "16", "-o", "4096", "-w", kind, "-t"]);
        tool.arg(seconds.to_string())
    }

    /// Writes patterns to every disk, reads them back and compares, for `seconds`. Says which disks.
    pub async fn verify(&self, dir: &Path, seconds: u32) -> Result<String, String> {
        self.load_tool(dir, "verify", seconds).run().await
    }

    /// Runs one workload (`unmap`, `flush`...) over every disk.
    pub async fn workload(&self, dir: &Path, kind: &str) -> Result<String, String> {
        self.load_tool(dir, kind, 1).run().await
    }

    /// The same as [`verify`](Self::verify) in the background, once I/O has begun.
    pub async fn load(&self, dir: &Path, seconds: u32) -> Running {
        let mut running = self.load_tool(dir, "verify", seconds).spawn();
        running.says("Running I/O for").await;
        running
    }

    /// Copies a file onto a disk.
    pub async fn copy_in(&self, dir: &Path, file: &Path, disk: &str) -> Result<String, String> {
        let tool = self.app("spdk_dd", dir).arg("--if").arg(file);
        tool.args(["--ob", disk, "--bs", "65536"]).run().await
    }

    /// Copies the first `kib` of a disk to a file.
    pub async fn copy_out(
        &self,
        dir: &Path,
        disk: &str,
        kib: u32,
        file: &Path,
    ) -> Result<String, String> {
        let tool = self.app("spdk_dd", dir).arg("--of").arg(file);
        let count = (kib / 64).to_string();
        tool.args(["--ib", disk, "--bs", "65536", "--count", &count])
            .run()
            .await
    }
}
