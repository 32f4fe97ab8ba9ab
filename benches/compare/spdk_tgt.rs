//! SPDK's own target, configured through its JSON-RPC.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use serde_json::{Value, json};
use spdk::cores::CoreSet;

use crate::attach::{Attach, Device};
use crate::jsonrpc::JsonRpc;
use crate::process::Process;
use crate::remote;
use crate::scenario::{
    BLOCK_SIZE, Export, HOST_NQN, NQN, SMALL_BLOCKS, SUBSYSTEM_ID, VOLUME_KEY, Volume,
};
use crate::settings::{Settings, fresh_directory};

/// Timeout of a start: the kernel zeroes the hugepages.
const START: Duration = Duration::from_secs(30);

/// Memory without hugepages, in MiB: the amount is required, and iSCSI's pools take half.
const NO_HUGE_MIB: u32 = 2048;

pub struct SpdkTgt {
    pub process: Process,
    pub rpc: JsonRpc,
    pub socket: PathBuf,
    /// Directory of sockets for initiators.
    exports: PathBuf,
}

impl SpdkTgt {
    /// Starts the target with reactors on these cores; `name` is the prefix of its sockets and log.
    pub async fn start_on(settings: &Settings, name: &str, reactors: &CoreSet) -> Result<Self> {
        let cores = settings.cores.of_target(reactors);
        Self::start_so(settings, name, reactors, &cores, settings.no_huge(), &[]).await
    }

    /// The same as a process on `cores`, with these options.
    pub async fn start_so(
        settings: &Settings,
        name: &str,
        reactors: &CoreSet,
        cores: &CoreSet,
        no_huge: bool,
        options: &[&str],
    ) -> Result<Self> {
        let exports = settings.scratch().join(name);
        let socket = exports.with_extension("sock");
        let mut arguments = vec![
            "-m".to_owned(),
            format!("[{reactors}]"),
            "-r".to_owned(),
            socket.display().to_string(),
            "--no-pci".to_owned(),
            // The other side has the same core, and is halted while this one runs.
            "--disable-cpumask-locks".to_owned(),
            "-S".to_owned(),
            exports.display().to_string(),
        ];
        fresh_directory(&exports)?;
        arguments.extend(options.iter().map(|&option| option.to_owned()));
        if no_huge {
            arguments.extend([
                "--no-huge".to_owned(),
                "-s".to_owned(),
                NO_HUGE_MIB.to_string(),
            ]);
        }
        let mut process = Process::start(
            name,
            &settings.log_dir(),
            cores,
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
        let bdev = bdev(volume);
        let (transport, address, attach) = match export {
            Export::VhostUserBlk => {
                let parameters = json!({"ctrlr": "bench", "dev_name": bdev});
                self.rpc
                    .call("vhost_create_blk_controller", parameters)
                    .await?;
                return Ok(self.vhost_user(Device::Blk));
            }
            Export::VhostUserScsi => {
                self.rpc
                    .call("vhost_create_scsi_controller", json!({"ctrlr": "bench"}))
                    .await?;
                let parameters = json!({"ctrlr": "bench", "scsi_target_num": 0, "bdev_name": bdev});
                self.rpc
                    .call("vhost_scsi_controller_add_target", parameters)
                    .await?;
                return Ok(self.vhost_user(Device::Scsi));
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
        let parameters = json!({
            "nqn": NQN, "allow_any_host": !tls, "serial_number": "BENCH", "max_namespaces": 256,
        });
        self.rpc.call("nvmf_create_subsystem", parameters).await?;
        self.add_namespace(bdev).await?;
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

    /// Address of the device in this target's directory.
    fn vhost_user(&self, device: Device) -> Attach {
        Attach::VhostUser {
            device,
            socket: self.exports.join("bench"),
        }
    }

    /// Adds a bdev to the subsystem of [`Self::export`], and returns the ID of the namespace.
    pub async fn add_namespace(&mut self, bdev: &str) -> Result<Value> {
        let parameters = json!({"nqn": NQN, "namespace": {"bdev_name": bdev}});
        self.rpc.call("nvmf_subsystem_add_ns", parameters).await
    }

    /// Adds a small malloc bdev to the subsystem of [`Self::export`].
    pub async fn add_small_namespace(&mut self, name: &str) -> Result<()> {
        let parameters =
            json!({"name": name, "num_blocks": SMALL_BLOCKS, "block_size": BLOCK_SIZE});
        self.rpc.call("bdev_malloc_create", parameters).await?;
        self.add_namespace(name).await.map(drop)
    }

    async fn create_volume(&mut self, settings: &Settings, volume: Volume) -> Result<()> {
        let (method, name) = match volume {
            Volume::Aio => return self.create_aio(settings).await,
            Volume::Remote { paths, port } => return self.attach_remote(paths, port).await,
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

    async fn create_aio(&mut self, settings: &Settings) -> Result<()> {
        let name = self.exports.file_name().unwrap_or_default();
        let file = settings.volume_file(&name.to_string_lossy())?;
        let parameters =
            json!({"name": bdev(Volume::Aio), "filename": file, "block_size": BLOCK_SIZE});
        self.rpc.call("bdev_aio_create", parameters).await?;
        Ok(())
    }

    /// The namespace of the remote target, with a path to each of its addresses, used as opi-spdk uses them.
    async fn attach_remote(&mut self, paths: u8, port: u16) -> Result<()> {
        let multipath = if paths == 1 { "disable" } else { "multipath" };
        for address in remote::addresses(paths) {
            let parameters = json!({
                "name": "remote", "trtype": "TCP", "adrfam": "IPv4", "traddr": address,
                "trsvcid": port.to_string(), "subnqn": remote::NQN, "multipath": multipath,
            });
            self.rpc
                .call("bdev_nvme_attach_controller", parameters)
                .await?;
        }
        if paths > 1 {
            let parameters = json!({
                "name": bdev(Volume::Remote { paths, port }), "policy": "active_active",
                "selector": "queue_depth",
            });
            self.rpc
                .call("bdev_nvme_set_multipath_policy", parameters)
                .await?;
        }
        Ok(())
    }

    pub async fn stop(self) -> Result<()> {
        drop(self.rpc);
        self.process.stop(Signal::TERM).await?;
        Ok(())
    }
}

/// Name of the exported bdev.
fn bdev(volume: Volume) -> &'static str {
    match volume {
        Volume::Remote { .. } => "remoten1",
        Volume::Malloc | Volume::Encrypted | Volume::Null | Volume::Aio => "bench",
    }
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
