//! SPDK's own target, configured through its JSON-RPC.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::jsonrpc::JsonRpc;
use crate::process::Process;
use crate::scenario::{
    Attach, BLOCK_SIZE, Export, HOST_NQN, NQN, SUBSYSTEM_ID, VOLUME_KEY, Volume,
};
use crate::settings::{Settings, fresh_directory};

/// Timeout of a start: the kernel zeroes the hugepages.
const START: Duration = Duration::from_secs(30);

/// Memory without hugepages, in MiB: the amount is required, and iSCSI's pools take half.
const NO_HUGE_MIB: u32 = 2048;

pub struct SpdkTgt {
    pub process: Process,
    rpc: JsonRpc,
    pub socket: PathBuf,
    /// Directory of sockets for initiators.
    exports: PathBuf,
}

impl SpdkTgt {
    /// Starts the target; `name` is the prefix of its sockets and log.
    pub async fn start(settings: &Settings, name: &str) -> Result<Self> {
        let exports = settings.scratch().join(name);
        let socket = exports.with_extension("sock");
        let mut arguments = vec![
            "-m".to_owned(),
            format!("[{}]", settings.cores.target),
            "-r".to_owned(),
            socket.display().to_string(),
            "--no-pci".to_owned(),
            // The other side has the same core, and is halted while this one runs.
            "--disable-cpumask-locks".to_owned(),
            "-S".to_owned(),
            exports.display().to_string(),
        ];
        fresh_directory(&exports)?;
        if settings.no_huge() {
            arguments.extend([
                "--no-huge".to_owned(),
                "-s".to_owned(),
                NO_HUGE_MIB.to_string(),
            ]);
        }
        let mut process = Process::start(
            name,
            &settings.log_dir(),
            &settings.cores.process,
            &settings.tool("spdk_tgt"),
            &arguments,
        )?;
        let mut rpc = process
            .poll_until("JSON-RPC", START, async || JsonRpc::connect(&socket).await)
            .await?;
        rpc.call("framework_wait_init", Value::Null).await?;
        Ok(Self {
            process,
            rpc,
            socket,
            exports,
        })
    }

    /// Creates a volume and exports it to initiators.
    pub async fn export(
        &mut self,
        settings: &Settings,
        volume: Volume,
        export: Export,
    ) -> Result<Attach> {
        self.create_volume(settings, volume).await?;
        let (transport, address, attach) = match export {
            Export::VhostUserBlk => {
                let parameters = json!({"ctrlr": "bench", "dev_name": "bench"});
                self.rpc
                    .call("vhost_create_blk_controller", parameters)
                    .await?;
                return Ok(Attach::VhostUserBlk(self.exports.join("bench")));
            }
            Export::NvmeTcp | Export::NvmeTcpTls => {
                let port = crate::target::free_port()?;
                let address = json!({
                    "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
                });
                let tls = export == Export::NvmeTcpTls;
                let psk = tls.then(|| settings.psk_file()).transpose()?;
                ("TCP", address, Attach::tcp(port, psk))
            }
            Export::VfioUser => {
                let directory = self.exports.join(SUBSYSTEM_ID);
                std::fs::create_dir_all(&directory)?;
                let address = json!({"trtype": "VFIOUSER", "traddr": directory});
                ("VFIOUSER", address, Attach::vfio_user(&directory))
            }
        };
        let transport = json!({"trtype": transport});
        self.rpc.call("nvmf_create_transport", transport).await?;
        let tls = export == Export::NvmeTcpTls;
        let parameters = json!({"nqn": NQN, "allow_any_host": !tls, "serial_number": "BENCH"});
        self.rpc.call("nvmf_create_subsystem", parameters).await?;
        let parameters = json!({"nqn": NQN, "namespace": {"bdev_name": "bench"}});
        self.rpc.call("nvmf_subsystem_add_ns", parameters).await?;
        let parameters = json!({"nqn": NQN, "listen_address": address, "secure_channel": tls});
        self.rpc
            .call("nvmf_subsystem_add_listener", parameters)
            .await?;
        if let Attach::Nvme { psk: Some(psk), .. } = &attach {
            let parameters = json!({"name": "bench", "path": psk});
            self.rpc.call("keyring_file_add_key", parameters).await?;
            let parameters = json!({"nqn": NQN, "host": HOST_NQN, "psk": "bench"});
            self.rpc.call("nvmf_subsystem_add_host", parameters).await?;
        }
        Ok(attach)
    }

    async fn create_volume(&mut self, settings: &Settings, volume: Volume) -> Result<()> {
        let (method, name) = match volume {
            Volume::Malloc => ("bdev_malloc_create", "bench"),
            Volume::Encrypted => ("bdev_malloc_create", "base"),
            Volume::Null => ("bdev_null_create", "bench"),
        };
        let parameters = json!({
            "name": name, "num_blocks": settings.volume_blocks(), "block_size": BLOCK_SIZE,
        });
        self.rpc.call(method, parameters).await?;
        if volume == Volume::Encrypted {
            let [key, key2] = VOLUME_KEY.map(hex);
            let parameters =
                json!({"name": "bench", "cipher": "AES_XTS", "key": key, "key2": key2});
            self.rpc.call("accel_crypto_key_create", parameters).await?;
            let parameters =
                json!({"name": "bench", "base_bdev_name": "base", "key_name": "bench"});
            self.rpc.call("bdev_crypto_create", parameters).await?;
        }
        Ok(())
    }

    pub async fn stop(self) -> Result<()> {
        drop(self.rpc);
        self.process.stop(Signal::TERM).await?;
        Ok(())
    }
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
