//! SPDK's initiator drivers in a separate process: SPDK tools that attach another process's devices as
//! bdevs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::tools::{Running, Tool};

/// Hugepage or heap memory of such a process, MiB; enough for the pool sizes set by
/// [`Driver::attaching`].
const MEMORY: &str = "192";

/// How a process attaches its devices.
#[derive(Clone, Debug)]
pub struct Driver {
    /// SPDK configuration steps by subsystem, in order.
    steps: Vec<(&'static str, Value)>,
    hugepages: bool,
}

impl Driver {
    /// Attaches the devices with an SPDK JSON-RPC method. Transports that share memory with the device
    /// (vfio-user, vhost-user) need `hugepages`.
    pub fn attaching(method: &str, params: Value, hugepages: bool) -> Self {
        let attach = json!({ "method": method, "params": params });
        let examined = json!({ "method": "bdev_wait_for_examine" });
        // Smaller pools than SPDK's server defaults: the kernel zeroes every page at start.
        let iobuf = json!({ "small_pool_count": 2048, "large_pool_count": 256 });
        let bdev = json!({ "bdev_io_pool_size": 8192, "bdev_io_cache_size": 256 });
        Self {
            steps: vec![
                (
                    "iobuf",
                    json!([{ "method": "iobuf_set_options", "params": iobuf }]),
                ),
                (
                    "bdev",
                    json!([{ "method": "bdev_set_options", "params": bdev }, attach, examined]),
                ),
            ],
            hugepages,
        }
    }

    /// Adds a key to the keyring; devices refer to it by name.
    pub fn with_key(mut self, name: &str, file: &Path) -> Self {
        let params = json!({ "name": name, "path": file });
        let add = json!([{ "method": "keyring_file_add_key", "params": params }]);
        self.steps.insert(0, ("keyring", add));
        self
    }

    /// Sets options of SPDK's NVMe driver before the devices are attached.
    pub fn with_nvme_options(mut self, options: Value) -> Self {
        let set = json!([{ "method": "bdev_nvme_set_options", "params": options }]);
        self.steps.insert(0, ("bdev", set));
        self
    }

    fn config(&self, dir: &Path) -> PathBuf {
        let part = |(name, config): &(_, _)| json!({ "subsystem": name, "config": config });
        let parts: Vec<_> = self.steps.iter().map(part).collect();
        let path = dir.join("driver.json");
        let config = json!({ "subsystems": parts });
        std::fs::write(&path, config.to_string()).expect("the directory is writable");
        path
    }

    /// Returns a tool that attaches the devices at start.
    pub fn app(&self, program: &str, dir: &Path) -> Tool {
        let memory = if self.hugepages { "-g" } else { "--no-huge" };
        Tool::new(program)
            // Other processes of the test may use this core too.
            .args(["-m", "0x2", "--disable-cpumask-locks", memory, "-s", MEMORY])
            .arg("--json")
            .arg(self.config(dir))
    }

    fn load_tool(&self, dir: &Path, kind: &str, seconds: u32) -> Tool {
        let tool = self.app("bdevperf", dir);
        let tool = tool.args(["-q", "16", "-o", "4096", "-w", kind, "-t"]);
        tool.arg(seconds.to_string())
    }

    /// Writes a pattern to every disk, reads it back and compares, for `seconds`. Returns the output,
    /// which names the disks.
    pub async fn verify(&self, dir: &Path, seconds: u32) -> Result<String, String> {
        self.load_tool(dir, "verify", seconds).run().await
    }

    /// Runs one workload (`unmap`, `write_zeroes`, `flush`...) on every disk.
    pub async fn workload(&self, dir: &Path, kind: &str) -> Result<String, String> {
        self.load_tool(dir, kind, 1).run().await
    }

    /// Starts [`verify`](Self::verify) in the background; returns once I/O has started.
    pub async fn load(&self, dir: &Path, seconds: u32) -> Running {
        let mut running = self.load_tool(dir, "verify", seconds).spawn();
        running.says("Running I/O for").await;
        running
    }

    /// Copies a file to a disk.
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
