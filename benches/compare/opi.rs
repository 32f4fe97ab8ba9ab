//! opi-spdk as a subprocess, configured over gRPC.

use std::time::Duration;

use anyhow::{Context, Result};
use opi_spdk::api::storage::{
    CreateMallocVolumeRequest, CreateNullVolumeRequest, CreateNvmeControllerRequest,
    CreateNvmeNamespaceRequest, CreateNvmeSubsystemRequest, FabricsEndpoint,
    ListNullVolumesRequest, MallocVolume, NullVolume, NvmeAddressFamily, NvmeController,
    NvmeControllerSpec, NvmeNamespace, NvmeNamespaceSpec, NvmeSubsystem, NvmeSubsystemSpec,
    NvmeTransportType, PciEndpoint, frontend_nvme_service_client::FrontendNvmeServiceClient,
    malloc_volume_service_client::MallocVolumeServiceClient,
    null_volume_service_client::NullVolumeServiceClient, nvme_controller_spec::Endpoint,
};
use rustix::process::Signal;
use serde::Serialize;
use tonic::transport::Channel;

use crate::process::Process;
use crate::scenario::{Attach, BLOCK_SIZE, Export, NQN, SUBSYSTEM_ID, Volume};
use crate::settings::Settings;
use crate::target::free_port;

/// How long it may take to start: the kernel zeroes its hugepages.
const START: Duration = Duration::from_secs(30);

/// What it takes beside the volume, MiB.
const MEMORY_MIB: u64 = 768;

/// What it says at its end about the reactor's time.
const COST_LINE: &str = "what configuration cost the reactor";

pub struct Opi {
    pub process: Process,
    pub port: u16,
}

/// What configuration has cost the app thread's reactor, as the program itself counted.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ControlCost {
    /// Control steps that the reactor took.
    pub steps: u64,
    /// Time that they took in all, microseconds.
    pub busy_us: u64,
    /// The longest, microseconds.
    pub longest_us: u64,
}

impl Opi {
    pub async fn start(settings: &Settings) -> Result<Self> {
        let (port, http) = (free_port()?, free_port()?);
        let directory = |name: &str| settings.scratch().join(name).display().to_string();
        let mut arguments = vec![
            format!("--grpc-addr=127.0.0.1:{port}"),
            format!("--http-addr=127.0.0.1:{http}"),
            format!("--cores={}", settings.cores.target),
            format!("--mem-mib={}", MEMORY_MIB + settings.line.volume_mib),
            format!("--state-dir={}", directory("state")),
            format!("--ctrlr-dir={}", directory("ctrlr")),
        ];
        if settings.no_huge() {
            arguments.push("--no-huge".to_owned());
        }
        // A state of its own each time: nothing to replay.
        for name in ["state", "ctrlr"] {
            match std::fs::remove_dir_all(directory(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        let mut process = Process::start(
            "opi-spdk",
            &settings.log_dir(),
            &settings.cores.process,
            &settings.line.program,
            &arguments,
        )?;
        process
            .until("gRPC", START, async || answers(port).await)
            .await?;
        Ok(Self { process, port })
    }

    /// Makes a volume and shows it to initiators.
    pub async fn export(
        &mut self,
        settings: &Settings,
        volume: Volume,
        export: Export,
    ) -> Result<Attach> {
        let channel = connect(self.port).await?;
        let volume_name_ref = create_volume(&channel, settings, volume).await?;
        let mut frontend = FrontendNvmeServiceClient::new(channel);
        let subsystem = NvmeSubsystem {
            spec: Some(NvmeSubsystemSpec {
                nqn: NQN.to_owned(),
                serial_number: "BENCH".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let parent = frontend
            .create_nvme_subsystem(CreateNvmeSubsystemRequest {
                nvme_subsystem: Some(subsystem),
                nvme_subsystem_id: SUBSYSTEM_ID.to_owned(),
            })
            .await
            .context("CreateNvmeSubsystem")?
            .into_inner()
            .name;
        let namespace = NvmeNamespace {
            spec: Some(NvmeNamespaceSpec {
                volume_name_ref,
                ..Default::default()
            }),
            ..Default::default()
        };
        frontend
            .create_nvme_namespace(CreateNvmeNamespaceRequest {
                parent: parent.clone(),
                nvme_namespace: Some(namespace),
                nvme_namespace_id: String::new(),
            })
            .await
            .context("CreateNvmeNamespace")?;
        let (spec, attach) = controller(settings, export)?;
        frontend
            .create_nvme_controller(CreateNvmeControllerRequest {
                parent,
                nvme_controller: Some(NvmeController {
                    spec: Some(spec),
                    ..Default::default()
                }),
                nvme_controller_id: String::new(),
            })
            .await
            .context("CreateNvmeController")?;
        Ok(attach)
    }

    /// Stops it, and gives what its configuration cost since it was set up.
    pub async fn stop(self) -> Result<Option<ControlCost>> {
        let output = self.process.stop(Signal::TERM).await?;
        let costs: Vec<_> = output.lines().filter_map(cost).collect();
        let Some(end) = costs.last().copied() else {
            return Ok(None);
        };
        // A line before the last one tells what was spent on the start.
        let start = if costs.len() > 1 {
            costs[0]
        } else {
            ControlCost {
                steps: 0,
                busy_us: 0,
                longest_us: 0,
            }
        };
        Ok(Some(ControlCost {
            steps: end.steps - start.steps,
            busy_us: end.busy_us - start.busy_us,
            longest_us: end.longest_us,
        }))
    }
}

/// A connection to the gRPC server on `port`.
pub async fn connect(port: u16) -> Result<Channel> {
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{port}"))?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

/// Whether the server on `port` answers calls: the port may be open before anybody serves it.
pub async fn answers(port: u16) -> Result<()> {
    let mut client = NullVolumeServiceClient::new(connect(port).await?);
    client
        .list_null_volumes(ListNullVolumesRequest::default())
        .await?;
    Ok(())
}

async fn create_volume(channel: &Channel, settings: &Settings, volume: Volume) -> Result<String> {
    let block_size = i64::try_from(BLOCK_SIZE)?;
    let blocks_count = i64::try_from(settings.volume_blocks())?;
    Ok(match volume {
        Volume::Malloc => {
            MallocVolumeServiceClient::new(channel.clone())
                .create_malloc_volume(CreateMallocVolumeRequest {
                    malloc_volume: Some(MallocVolume {
                        block_size,
                        blocks_count,
                        ..Default::default()
                    }),
                    malloc_volume_id: "bench".to_owned(),
                })
                .await
                .context("CreateMallocVolume")?
                .into_inner()
                .name
        }
        Volume::Null => {
            NullVolumeServiceClient::new(channel.clone())
                .create_null_volume(CreateNullVolumeRequest {
                    null_volume: Some(NullVolume {
                        block_size,
                        blocks_count,
                        ..Default::default()
                    }),
                    null_volume_id: "bench".to_owned(),
                })
                .await
                .context("CreateNullVolume")?
                .into_inner()
                .name
        }
    })
}

fn controller(settings: &Settings, export: Export) -> Result<(NvmeControllerSpec, Attach)> {
    let (trtype, endpoint, attach) = match export {
        Export::NvmeTcp => {
            let port = free_port()?;
            let endpoint = Endpoint::FabricsId(FabricsEndpoint {
                traddr: "127.0.0.1".to_owned(),
                trsvcid: port.to_string(),
                adrfam: NvmeAddressFamily::Ipv4.into(),
            });
            (NvmeTransportType::Tcp, endpoint, Attach::tcp(port))
        }
        Export::VfioUser => {
            let endpoint = Endpoint::PcieId(PciEndpoint {
                port_id: Some(0),
                physical_function: Some(0),
                virtual_function: Some(0),
            });
            let directory = settings.scratch().join("ctrlr").join(SUBSYSTEM_ID);
            (
                NvmeTransportType::Pcie,
                endpoint,
                Attach::vfio_user(&directory),
            )
        }
    };
    let spec = NvmeControllerSpec {
        trtype: trtype.into(),
        endpoint: Some(endpoint),
        ..Default::default()
    };
    Ok((spec, attach))
}

/// Reads `steps=1 busy_us=2 longest_us=3` off the line that tells the cost.
fn cost(line: &str) -> Option<ControlCost> {
    let (_, values) = line.split_once(COST_LINE)?;
    let value = |key: &str| {
        let mut words = values.split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    };
    Some(ControlCost {
        steps: value("steps")?,
        busy_us: value("busy_us")?,
        longest_us: value("longest_us")?,
    })
}
