//! Volumes and exports of opi-spdk.

use anyhow::{Context, Result, bail};
use hyper::Method;
use opi_spdk::api::storage::{
    CreateEncryptedVolumeRequest, CreateMallocVolumeRequest, CreateNullVolumeRequest,
    CreateNvmeControllerRequest, CreateNvmeNamespaceRequest, CreateNvmeSubsystemRequest,
    CreateVirtioBlkRequest, EncryptedVolume, EncryptionType, FabricsEndpoint, MallocVolume,
    NullVolume, NvmeAddressFamily, NvmeController, NvmeControllerSpec, NvmeNamespace,
    NvmeNamespaceSpec, NvmeSubsystem, NvmeSubsystemSpec, NvmeTransportType, PciEndpoint, VirtioBlk,
    frontend_nvme_service_client::FrontendNvmeServiceClient,
    frontend_virtio_blk_service_client::FrontendVirtioBlkServiceClient,
    malloc_volume_service_client::MallocVolumeServiceClient,
    middleend_encryption_service_client::MiddleendEncryptionServiceClient as EncryptedVolumeServiceClient,
    null_volume_service_client::NullVolumeServiceClient, nvme_controller_spec::Endpoint,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{Opi, connect};
use crate::attach::{Attach, Device};
use crate::http::Http;
use crate::remote;
use crate::scenario::{
    BLOCK_SIZE, Export, HOST_NQN, NQN, PSK, SMALL_BLOCKS, SUBSYSTEM_ID, VOLUME_KEY, Volume,
};
use crate::settings::Settings;
use crate::target::free_port;

impl Opi {
    /// Creates a volume and exports it to initiators.
    pub async fn export(
        &mut self,
        settings: &Settings,
        volume: Volume,
        export: Export,
    ) -> Result<Attach> {
        let channel = connect(self.port).await?;
        let mut http = Http::connect(self.http_port).await?;
        let volume_name_ref = create_volume(&channel, &mut http, settings, volume).await?;
        match export {
            Export::VhostUserBlk => return virtio_blk(channel, settings, volume_name_ref).await,
            Export::VhostUserScsi => {
                return virtio_scsi(&mut http, settings, &volume_name_ref).await;
            }
            Export::NvmeTcp | Export::NvmeTcpTls | Export::VfioUser => {}
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

    /// Adds a small malloc volume to the subsystem of [`Self::export`].
    pub async fn add_small_namespace(&self, id: &str) -> Result<()> {
        let mut http = Http::connect(self.http_port).await?;
        let body = json!({"block_size": BLOCK_SIZE, "blocks_count": SMALL_BLOCKS});
        let path = format!("/v1/mallocVolumes?malloc_volume_id={id}");
        let volume = post(&mut http, &path, body).await?;
        self.add_namespace(&volume).await
    }
}

async fn create_volume(
    channel: &Channel,
    http: &mut Http,
    settings: &Settings,
    volume: Volume,
) -> Result<String> {
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
        Volume::Aio => {
            let file = settings.volume_file("opi-spdk")?;
            let body = json!({"filename": file, "block_size": BLOCK_SIZE});
            let path = "/v1/aioVolumes?aio_volume_id=bench";
            post(http, path, body).await
        }
        Volume::Remote { paths, port } => remote_volume(http, paths, port).await,
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

/// Creates an object over HTTP and returns its name.
async fn post(http: &mut Http, path: &str, body: Value) -> Result<String> {
    let made = http.call(Method::POST, path, Some(body)).await?;
    let name = made["name"].as_str();
    Ok(name
        .with_context(|| format!("{path}: no name in {made}"))?
        .to_owned())
}

/// The namespace of the remote target, with a path to each of its addresses.
async fn remote_volume(http: &mut Http, paths: u8, port: u16) -> Result<String> {
    let multipath = match paths {
        1 => "NVME_MULTIPATH_DISABLE",
        _ => "NVME_MULTIPATH_MULTIPATH",
    };
    let body = json!({"multipath": multipath});
    let path = "/v1/nvmeRemoteControllers?nvme_remote_controller_id=remote";
    let parent = post(http, path, body).await?;
    for (number, address) in remote::addresses(paths).enumerate() {
        let body = json!({
            "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": address,
            "fabrics": {
                "adrfam": "NVME_ADDRESS_FAMILY_IPV4", "trsvcid": port, "subnqn": remote::NQN,
            },
        });
        let path = format!("/v1/{parent}/nvmePaths?nvme_path_id=path-{number}");
        post(http, &path, body).await?;
    }
    Ok("volumes/remoten1".to_owned())
}

/// A LUN of a controller's target.
async fn virtio_scsi(http: &mut Http, settings: &Settings, volume: &str) -> Result<Attach> {
    const ID: &str = "bench-scsi";
    let target = format!("/v1/virtioScsiTargets?virtio_scsi_target_id={ID}");
    let target = post(http, &target, json!({"max_luns": 1})).await?;
    let lun = json!({"target_name_ref": target, "volume_name_ref": volume});
    post(http, "/v1/virtioScsiLuns?virtio_scsi_lun_id=bench-lun", lun).await?;
    let function = json!({"port_id": 0, "physical_function": 0, "virtual_function": 0});
    let controller = format!("/v1/virtioScsiControllers?virtio_scsi_controller_id={ID}");
    post(http, &controller, json!({ "pcie_id": function })).await?;
    Ok(Attach::VhostUser {
        device: Device::Scsi,
        socket: settings.scratch().join("ctrlr").join(ID),
    })
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
    Ok(Attach::VhostUser {
        device: Device::Blk,
        socket,
    })
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
        Export::VhostUserBlk | Export::VhostUserScsi => bail!("vhost-user is no NVMe controller"),
    };
    let spec = NvmeControllerSpec {
        trtype: trtype.into(),
        endpoint: Some(endpoint),
        ..Default::default()
    };
    Ok((spec, attach))
}
