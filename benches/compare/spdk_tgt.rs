//! SPDK's own target, configured through its JSON-RPC as opi-spdk is through gRPC.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::jsonrpc::JsonRpc;
use crate::process::Process;
use crate::scenario::{Attach, BLOCK_SIZE, Export, NQN, SUBSYSTEM_ID, Volume};
use crate::settings::Settings;

/// How long it may take to start: the kernel zeroes its hugepages.
const START: Duration = Duration::from_secs(30);

/// Memory where there are no hugepages, MiB: it must be said, and iSCSI's pools take half.
const NO_HUGE_MIB: u32 = 2048;

pub struct SpdkTgt {
    pub process: Process,
    rpc: JsonRpc,
    pub socket: PathBuf,
}

/// What its reactors have done since start, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct ReactorTime {
    pub busy: u64,
    pub idle: u64,
}

impl SpdkTgt {
    pub async fn start(settings: &Settings) -> Result<Self> {
        let socket = settings.scratch().join("rpc.sock");
        let mut arguments = vec![
            "-m".to_owned(),
            format!("[{}]", settings.cores.target),
            "-r".to_owned(),
            socket.display().to_string(),
            "--no-pci".to_owned(),
        ];
        if settings.no_huge() {
            arguments.extend([
                "--no-huge".to_owned(),
                "-s".to_owned(),
                NO_HUGE_MIB.to_string(),
            ]);
        }
        let mut process = Process::start(
            "spdk_tgt",
            &settings.log_dir(),
            &settings.cores.process,
            &settings.tool("spdk_tgt"),
            &arguments,
        )?;
        let mut rpc = process
            .until("JSON-RPC", START, async || JsonRpc::connect(&socket).await)
            .await?;
        rpc.call("framework_wait_init", Value::Null).await?;
        Ok(Self {
            process,
            rpc,
            socket,
        })
    }

    /// Makes a volume and shows it to initiators.
    pub async fn export(
        &mut self,
        settings: &Settings,
        volume: Volume,
        export: Export,
    ) -> Result<Attach> {
        let create = match volume {
            Volume::Malloc => "bdev_malloc_create",
            Volume::Null => "bdev_null_create",
        };
        let parameters = json!({
            "name": "bench", "num_blocks": settings.volume_blocks(), "block_size": BLOCK_SIZE,
        });
        self.rpc.call(create, parameters).await?;
        let transport = match export {
            Export::NvmeTcp => "TCP",
            Export::VfioUser => "VFIOUSER",
        };
        self.rpc
            .call("nvmf_create_transport", json!({"trtype": transport}))
            .await?;
        let parameters = json!({"nqn": NQN, "allow_any_host": true, "serial_number": "BENCH"});
        self.rpc.call("nvmf_create_subsystem", parameters).await?;
        let parameters = json!({"nqn": NQN, "namespace": {"bdev_name": "bench"}});
        self.rpc.call("nvmf_subsystem_add_ns", parameters).await?;
        let (address, attach) = match export {
            Export::NvmeTcp => {
                let port = crate::target::free_port()?;
                let address = json!({
                    "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
                });
                (address, Attach::tcp(port))
            }
            Export::VfioUser => {
                let directory = settings.scratch().join("spdk_tgt").join(SUBSYSTEM_ID);
                std::fs::create_dir_all(&directory)?;
                let address = json!({"trtype": "VFIOUSER", "traddr": directory});
                (address, Attach::vfio_user(&directory))
            }
        };
        let parameters = json!({"nqn": NQN, "listen_address": address});
        self.rpc
            .call("nvmf_subsystem_add_listener", parameters)
            .await?;
        Ok(attach)
    }

    /// What its one reactor has done so far.
    pub async fn reactor_time(&mut self) -> Result<ReactorTime> {
        let answer = self.rpc.call("framework_get_reactors", Value::Null).await?;
        let number = |value: &Value| {
            value
                .as_u64()
                .with_context(|| format!("framework_get_reactors: {answer}"))
        };
        Ok(ReactorTime {
            busy: number(&answer["reactors"][0]["busy"])?,
            idle: number(&answer["reactors"][0]["idle"])?,
        })
    }

    pub async fn stop(self) -> Result<()> {
        drop(self.rpc);
        self.process.stop(Signal::TERM).await?;
        Ok(())
    }
}

impl ReactorTime {
    /// What it did from `earlier` until now.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy - earlier.busy,
            idle: self.idle - earlier.idle,
        }
    }

    /// Busy seconds to a second.
    pub fn busy_share(self) -> f64 {
        self.busy as f64 / (self.busy + self.idle) as f64
    }
}
