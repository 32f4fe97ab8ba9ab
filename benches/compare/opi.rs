//! opi-spdk as a subprocess, configured over gRPC.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use opi_spdk::api::storage::{
    CreateEncryptedVolumeRequest, CreateMallocVolumeRequest, CreateNullVolumeRequest,
    CreateNvmeControllerRequest, CreateNvmeNamespaceRequest, CreateNvmeSubsystemRequest,
    CreateVirtioBlkRequest, EncryptedVolume, EncryptionType, FabricsEndpoint,
    ListNullVolumesRequest, MallocVolume, NullVolume, NvmeAddressFamily, NvmeController,
    NvmeControllerSpec, NvmeNamespace, NvmeNamespaceSpec, NvmeSubsystem, NvmeSubsystemSpec,
    NvmeTransportType, PciEndpoint, VirtioBlk,
    frontend_nvme_service_client::FrontendNvmeServiceClient,
    frontend_virtio_blk_service_client::FrontendVirtioBlkServiceClient,
    malloc_volume_service_client::MallocVolumeServiceClient,
    middleend_encryption_service_client::MiddleendEncryptionServiceClient as EncryptedVolumeServiceClient,
    null_volume_service_client::NullVolumeServiceClient, nvme_controller_spec::Endpoint,
};
use rustix::process::Signal;
use serde::Serialize;
use tonic::transport::Channel;

use crate::process::Process;
use crate::scenario::{
    Attach, BLOCK_SIZE, Export, HOST_NQN, NQN, PSK, SUBSYSTEM_ID, VOLUME_KEY, Volume,
};
use crate::settings::{Settings, fresh_directory};
use crate::target::free_port;

/// Timeout of a start: the kernel zeroes the hugepages.
const START: Duration = Duration::from_secs(30);

/// Memory in addition to the volume's, in MiB.
const MEMORY_MIB: u64 = 768;

/// Log line at exit with the cost of configuration.
const COST_LINE: &str = "what configuration cost the reactor";

pub struct Opi {
    pub process: Process,
    /// gRPC port.
    pub port: u16,
    /// HTTP/JSON port.
    pub http_port: u16,
    /// Socket of SPDK's JSON-RPC, if enabled.
    pub rpc_socket: Option<PathBuf>,
}

/// Cost of configuration on the app thread's reactor, by the program's own account.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ControlCost {
    /// Number of control steps.
    pub steps: u64,
    /// Total time of the steps, in microseconds.
    pub busy_us: u64,
    /// Longest step, in microseconds.
    pub longest_us: u64,
}

/// Whether SPDK's reactor counters are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counters {
    Wanted,
    Unwanted,
}

/// Parameters of a start.
#[derive(Debug, Clone)]
pub struct Start {
    /// Whether SPDK's counters are read.
    pub counters: Counters,
    /// SPDK's memory, in MiB.
    pub memory_mib: u64,
    /// Whether to run without hugepages.
    pub no_huge: bool,
    /// Keep the existing state instead of a new one.
    pub again: bool,
    /// Directory for state and sockets.
    pub directory: PathBuf,
    /// Additional options.
    pub options: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(&'static str, String)>,
}

impl Start {
    /// The parameters for most parts.
    pub fn new(settings: &Settings, counters: Counters) -> Self {
        Self {
            counters,
            memory_mib: MEMORY_MIB + settings.line.volume_mib,
            no_huge: settings.no_huge(),
            again: false,
            directory: settings.scratch().to_owned(),
            options: Vec::new(),
            environment: Vec::new(),
        }
    }
}

impl Opi {
    /// Starts with a new state.
    pub async fn start(settings: &Settings, counters: Counters) -> Result<Self> {
        Self::start_so(settings, &Start::new(settings, counters)).await
    }

    /// Starts, and returns once reads are answered.
    pub async fn start_so(settings: &Settings, start: &Start) -> Result<Self> {
        let (port, http) = (free_port()?, free_port()?);
        let directory = |name: &str| start.directory.join(name);
        let mut arguments = vec![
            format!("--grpc-addr=127.0.0.1:{port}"),
            format!("--http-addr=127.0.0.1:{http}"),
            format!("--cores={}", settings.cores.target),
            format!("--mem-mib={}", start.memory_mib),
            format!("--state-dir={}", directory("state").display()),
            format!("--ctrlr-dir={}", directory("ctrlr").display()),
        ];
        arguments.extend(start.options.iter().cloned());
        if start.no_huge {
            arguments.push("--no-huge".to_owned());
        }
        let wanted = start.counters == Counters::Wanted;
        let rpc_socket = wanted.then(|| directory("opi-rpc.sock"));
        if let Some(socket) = &rpc_socket {
            arguments.push(format!("--spdk-rpc-socket={}", socket.display()));
        }
        for name in ["state", "ctrlr"] {
            if !start.again {
                fresh_directory(&directory(name))?;
            }
        }
        let mut process = Process::start_in(
            "opi-spdk",
            &settings.log_dir(),
            &settings.cores.process,
            &settings.line.program,
            &arguments,
            &start.environment,
        )?;
        process
            .poll_until("gRPC", START, async || answers(port).await)
            .await?;
        Ok(Self {
            process,
            port,
            http_port: http,
            rpc_socket,
        })
    }

    /// Creates a volume and exports it to initiators.
    pub async fn export(
        &mut self,
        settings: &Settings,
        volume: Volume,
        export: Export,
    ) -> Result<Attach> {
        let channel = connect(self.port).await?;
        let volume_name_ref = create_volume(&channel, settings, volume).await?;
        if export == Export::VhostUserBlk {
            return virtio_blk(channel, settings, volume_name_ref).await;
        }
        let (controller, attach) = controller(settings, export)?;
        let mut spec = NvmeSubsystemSpec {
            nqn: NQN.to_owned(),
            serial_number: "BENCH".to_owned(),
            max_namespaces: 256,
            ..Default::default()
        };
        if export == Export::NvmeTcpTls {
            spec.hostnqn = HOST_NQN.to_owned();
            spec.psk = PSK.into();
        }
        let mut frontend = FrontendNvmeServiceClient::new(channel);
        let parent = frontend
            .create_nvme_subsystem(CreateNvmeSubsystemRequest {
                nvme_subsystem: Some(NvmeSubsystem {
                    spec: Some(spec),
                    ..Default::default()
                }),
                nvme_subsystem_id: SUBSYSTEM_ID.to_owned(),
            })
            .await
            .context("CreateNvmeSubsystem")?
            .into_inner()
            .name;
        self.add_namespace(&volume_name_ref).await?;
        frontend
            .create_nvme_controller(CreateNvmeControllerRequest {
                parent,
                nvme_controller: Some(NvmeController {
                    spec: Some(controller),
                    ..Default::default()
                }),
                nvme_controller_id: String::new(),
            })
            .await
            .context("CreateNvmeController")?;
        Ok(attach)
    }

    /// Adds a volume to the subsystem of [`Self::export`].
    pub async fn add_namespace(&self, volume: &str) -> Result<()> {
        let namespace = NvmeNamespace {
            spec: Some(NvmeNamespaceSpec {
                volume_name_ref: volume.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        FrontendNvmeServiceClient::new(connect(self.port).await?)
            .create_nvme_namespace(CreateNvmeNamespaceRequest {
                parent: format!("nvmeSubsystems/{SUBSYSTEM_ID}"),
                nvme_namespace: Some(namespace),
                nvme_namespace_id: String::new(),
            })
            .await
            .context("CreateNvmeNamespace")?;
        Ok(())
    }

    /// Stops the process and returns the cost of configuration since its start.
    pub async fn stop(self) -> Result<ControlCost> {
        let output = self.process.stop(Signal::TERM).await?;
        let cost = output.lines().find_map(cost);
        cost.context("opi-spdk did not log what configuration cost the reactor")
    }
}

/// Connects to the gRPC server on `port`.
pub async fn connect(port: u16) -> Result<Channel> {
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{port}"))?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

/// Checks whether the server on `port` answers calls: the port is bound before it is served.
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
    let malloc = async |id: &str| -> Result<String> {
        let request = CreateMallocVolumeRequest {
            malloc_volume: Some(MallocVolume {
                block_size,
                blocks_count,
                ..Default::default()
            }),
            malloc_volume_id: id.to_owned(),
        };
        let mut client = MallocVolumeServiceClient::new(channel.clone());
        let made = client.create_malloc_volume(request).await;
        Ok(made.context("CreateMallocVolume")?.into_inner().name)
    };
    match volume {
        Volume::Malloc => malloc("bench").await,
        Volume::Encrypted => {
            let request = CreateEncryptedVolumeRequest {
                encrypted_volume: Some(EncryptedVolume {
                    volume_name_ref: malloc("base").await?,
                    key: VOLUME_KEY.concat(),
                    cipher: EncryptionType::AesXts128.into(),
                    ..Default::default()
                }),
                encrypted_volume_id: "bench".to_owned(),
            };
            let mut client = EncryptedVolumeServiceClient::new(channel.clone());
            let made = client.create_encrypted_volume(request).await;
            Ok(made.context("CreateEncryptedVolume")?.into_inner().name)
        }
        Volume::Null => {
            let request = CreateNullVolumeRequest {
                null_volume: Some(NullVolume {
                    block_size,
                    blocks_count,
                    ..Default::default()
                }),
                null_volume_id: "bench".to_owned(),
            };
            let mut client = NullVolumeServiceClient::new(channel.clone());
            let made = client.create_null_volume(request).await;
            Ok(made.context("CreateNullVolume")?.into_inner().name)
        }
    }
}

/// The first emulated function.
fn function() -> PciEndpoint {
    PciEndpoint {
        port_id: Some(0),
        physical_function: Some(0),
        virtual_function: Some(0),
    }
}

async fn virtio_blk(
    channel: Channel,
    settings: &Settings,
    volume_name_ref: String,
) -> Result<Attach> {
    let request = CreateVirtioBlkRequest {
        virtio_blk: Some(VirtioBlk {
            pcie_id: Some(function()),
            volume_name_ref,
            ..Default::default()
        }),
        virtio_blk_id: "bench-blk".to_owned(),
    };
    let mut client = FrontendVirtioBlkServiceClient::new(channel);
    client
        .create_virtio_blk(request)
        .await
        .context("CreateVirtioBlk")?;
    let socket = settings.scratch().join("ctrlr").join("bench-blk");
    Ok(Attach::VhostUserBlk(socket))
}

fn controller(settings: &Settings, export: Export) -> Result<(NvmeControllerSpec, Attach)> {
    let (trtype, endpoint, attach) = match export {
        Export::NvmeTcp | Export::NvmeTcpTls => {
            let port = free_port()?;
            let endpoint = Endpoint::FabricsId(FabricsEndpoint {
                traddr: "127.0.0.1".to_owned(),
                trsvcid: port.to_string(),
                adrfam: NvmeAddressFamily::Ipv4.into(),
            });
            let tls = export == Export::NvmeTcpTls;
            let psk = tls.then(|| settings.psk_file()).transpose()?;
            (NvmeTransportType::Tcp, endpoint, Attach::tcp(port, psk))
        }
        Export::VfioUser => {
            let directory = settings.scratch().join("ctrlr").join(SUBSYSTEM_ID);
            let endpoint = Endpoint::PcieId(function());
            (
                NvmeTransportType::Pcie,
                endpoint,
                Attach::vfio_user(&directory),
            )
        }
        Export::VhostUserBlk => bail!("vhost-user-blk is no NVMe controller"),
    };
    let spec = NvmeControllerSpec {
        trtype: trtype.into(),
        endpoint: Some(endpoint),
        ..Default::default()
    };
    Ok((spec, attach))
}

/// Parses `steps=1 busy_us=2 longest_us=3` of the cost line.
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
