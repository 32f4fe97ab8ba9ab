//! All services and the kinds that they serve. A new kind is one line here, in its service's `serves`, and its
//! construction in [`Services::new`].

mod routes;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use spdk::Handle;

use crate::api::storage::*;
use crate::backend::{
    NvmeCredentials, NvmePaths, NvmeRemoteControllers, NvmeRemoteNamespaces, Volumes,
};
use crate::config::Config;
use crate::configured::{self, Collections};
use crate::discovery;
use crate::events::Log;
use crate::frontend::{
    DiscoveryReferrals, Luns, NvmeControllers, NvmeHostService, NvmeHosts, NvmeNamespaceMasks,
    NvmeNamespaces, NvmeSubsystems, Reservations, VirtioBlks, VirtioScsiControllers,
    VirtioScsiLuns, VirtioScsiTargets,
};
use crate::health::Health;
use crate::identity::Identity;
use crate::kvm::{Plugged, Slots};
use crate::mdns::Announcement;
use crate::middleend::{DelayVolumes, EncryptedVolumes, QosVolumes};
use crate::objects::Objects;
use crate::reconcile::Reconciler;
use crate::resource::service::{service, services};
use crate::resource::{
    CallContext, Collection, Conditions, Key, List, Registry, Scope, Shared, UnusableRecord,
};
use crate::state::{Stats, Store};

service! {
    /// Volumes that discard writes.
    storage::NullVolumeService {
        serves { null_volumes: NullVolume[flat] as Volumes<NullVolume> }
        beside {}
    }
}

service! {
    /// Volumes in memory.
    storage::MallocVolumeService {
        serves { malloc_volumes: MallocVolume[flat] as Volumes<MallocVolume> }
        beside {}
    }
}

service! {
    /// Volumes on files and kernel block devices.
    storage::AioVolumeService {
        serves { aio_volumes: AioVolume[flat] as Volumes<AioVolume> }
        beside {}
    }
}

service! {
    /// NVMe subsystems, with their controllers and namespaces.
    storage::FrontendNvmeService {
        serves {
            nvme_subsystems: NvmeSubsystem[flat] as NvmeSubsystems,
            nvme_controllers: NvmeController[nested] as Plugged<NvmeControllers>,
            nvme_namespaces: NvmeNamespace[nested] as NvmeNamespaces,
        }
        beside {}
    }
}

service! {
    /// Masks of namespaces: the hosts that may see them.
    own::NvmeNamespaceMaskService {
        serves { nvme_namespace_masks: NvmeNamespaceMask[nested] as NvmeNamespaceMasks }
        beside {}
    }
}

service! {
    /// Remote NVMe controllers, with their paths and namespaces.
    storage::NvmeRemoteControllerService {
        serves {
            nvme_remote_controllers: NvmeRemoteController[flat] as NvmeRemoteControllers,
            nvme_paths: NvmePath[nested] as NvmePaths,
        }
        holds { nvme_remote_namespaces: Arc<NvmeRemoteNamespaces> }
        beside {
            async fn reset_nvme_remote_controller(
                &self,
                request: tonic::Request<ResetNvmeRemoteControllerRequest>,
            ) -> Result<tonic::Response<()>, tonic::Status> {
                let call = CallContext::of(request.metadata());
                let controllers = &self.nvme_remote_controllers;
                NvmeRemoteControllers::reset(controllers, call, &request.get_ref().name).await?;
                Ok(tonic::Response::new(()))
            }

            async fn get_nvme_remote_namespace(
                &self,
                request: tonic::Request<GetNvmeRemoteNamespaceRequest>,
            ) -> Result<tonic::Response<NvmeRemoteNamespace>, tonic::Status> {
                let found = self.nvme_remote_namespaces.get(&request.get_ref().name).await?;
                Ok(tonic::Response::new(found))
            }

            async fn list_nvme_remote_namespaces(
                &self,
                request: tonic::Request<ListNvmeRemoteNamespacesRequest>,
            ) -> Result<tonic::Response<ListNvmeRemoteNamespacesResponse>, tonic::Status> {
                let scope = Scope::of(request.extensions());
                let request = request.into_inner();
                let request = List {
                    parent: Some(request.parent),
                    page_size: request.page_size,
                    page_token: request.page_token,
                    scope,
                };
                let page = self.nvme_remote_namespaces.list(&request).await?;
                Ok(tonic::Response::new(ListNvmeRemoteNamespacesResponse {
                    nvme_remote_namespaces: page.items,
                    next_page_token: page.next_page_token,
                }))
            }
        }
    }
}

service! {
    /// Keys for remote NVMe controllers.
    own::NvmeCredentialService {
        serves { nvme_credentials: NvmeCredential[nested] as NvmeCredentials }
        beside {}
    }
}

service! {
    /// Volumes that encrypt another volume.
    storage::MiddleendEncryptionService {
        serves { encrypted_volumes: EncryptedVolume[listed] as EncryptedVolumes }
        beside {}
    }
}

service! {
    /// QoS limits of volumes.
    storage::MiddleendQosVolumeService {
        serves { qos_volumes: QosVolume[listed] as QosVolumes }
        beside {}
    }
}

service! {
    /// Volumes that add latency to another volume.
    own::DelayVolumeService {
        serves { delay_volumes: DelayVolume[flat] as DelayVolumes }
        beside {}
    }
}

service! {
    /// Referrals of hosts to other discovery services.
    own::DiscoveryReferralService {
        serves { discovery_referrals: DiscoveryReferral[flat] as DiscoveryReferrals }
        beside {}
    }
}

service! {
    /// virtio-blk devices.
    storage::FrontendVirtioBlkService {
        serves { virtio_blks: VirtioBlk[flat] as Plugged<VirtioBlks> }
        beside {}
    }
}

service! {
    /// virtio-scsi devices.
    storage::FrontendVirtioScsiService {
        serves {
            virtio_scsi_targets: VirtioScsiTarget[listed] as VirtioScsiTargets,
            virtio_scsi_controllers: VirtioScsiController[listed] as Plugged<VirtioScsiControllers>,
            virtio_scsi_luns: VirtioScsiLun[listed] as VirtioScsiLuns,
        }
        beside {}
    }
}

services! {
    /// All services of the API.
    Services {
        serves {
            null: NullVolumeService,
            malloc: MallocVolumeService,
            aio: AioVolumeService,
            nvme: FrontendNvmeService,
            hosts: NvmeHostService,
            masks: NvmeNamespaceMaskService,
            nvme_remote: NvmeRemoteControllerService,
            credentials: NvmeCredentialService,
            encryption: MiddleendEncryptionService,
            qos: MiddleendQosVolumeService,
            delay: DelayVolumeService,
            referrals: DiscoveryReferralService,
            virtio_blk: FrontendVirtioBlkService,
            virtio_scsi: FrontendVirtioScsiService,
        }
        holds {
            shared: Arc<Shared>,
            spdk: Handle,
            health: Arc<Health>,
            reservations: Arc<Reservations>,
            announcement: Arc<Announcement>,
        }
    }
}

impl Services {
    /// Creates the services over a running SPDK. Nothing exists yet, and no change is admitted before
    /// [`restore`](Self::restore) and the future that it returns have restored the records.
    pub fn new(config: &Config, identity: Identity, spdk: Handle, store: Arc<dyn Store>) -> Self {
        let shared = Shared::over(spdk.clone(), store);
        let slots = Slots::new(config.kvm.as_ref(), &config.ctrlr_dir, config.socket_access);
        let health = Health::new(Arc::clone(&shared));
        let nvme_subsystems = NvmeSubsystems::new(spdk.clone(), Arc::clone(&shared));
        let nvme_subsystems = Collection::new(nvme_subsystems, &shared);
        let nvme_controllers = NvmeControllers::new(
            spdk.clone(),
            Arc::clone(&nvme_subsystems),
            Arc::clone(&shared),
            Arc::clone(&health),
            config.ctrlr_dir.clone(),
        );
        let subsystems = Arc::clone(&nvme_subsystems);
        let reservations = Reservations::new(spdk.clone(), Arc::clone(&shared));
        let nvme_namespaces = NvmeNamespaces::new(
            spdk.clone(),
            subsystems,
            Arc::clone(&shared),
            Arc::clone(&health),
            Arc::clone(&reservations),
        );
        let nvme_namespaces = Collection::new(nvme_namespaces, &shared);
        let nvme_hosts = NvmeHosts::new(
            spdk.clone(),
            Arc::clone(&nvme_subsystems),
            Arc::clone(&nvme_namespaces),
            Arc::clone(&shared),
        );
        let nvme_namespace_masks = NvmeNamespaceMasks::new(
            spdk.clone(),
            Arc::clone(&nvme_subsystems),
            Arc::clone(&nvme_namespaces),
            Arc::clone(&shared),
        );
        let virtio_blks = VirtioBlks::new(spdk.clone());
        let virtio_scsi = virtio_scsi(&spdk, &shared, &slots);
        let nvme_remote = nvme_remote(&spdk, &shared, &health);
        let controllers = Arc::clone(&nvme_remote.nvme_remote_controllers);
        let credentials = NvmeCredentials::new(spdk.clone(), controllers);
        Self {
            null: NullVolumeService {
                null_volumes: Collection::new(Volumes::new(spdk.clone(), identity), &shared),
            },
            malloc: MallocVolumeService {
                malloc_volumes: Collection::new(Volumes::new(spdk.clone(), identity), &shared),
            },
            nvme_remote,
            credentials: NvmeCredentialService {
                nvme_credentials: Collection::new(credentials, &shared),
            },
            encryption: MiddleendEncryptionService {
                encrypted_volumes: Collection::new(EncryptedVolumes::new(spdk.clone()), &shared),
            },
            qos: MiddleendQosVolumeService {
                qos_volumes: Collection::new(QosVolumes::new(spdk.clone()), &shared),
            },
            delay: DelayVolumeService {
                delay_volumes: Collection::new(DelayVolumes::new(spdk.clone()), &shared),
            },
            referrals: DiscoveryReferralService {
                discovery_referrals: Collection::new(
                    DiscoveryReferrals::new(spdk.clone()),
                    &shared,
                ),
            },
            aio: AioVolumeService {
                aio_volumes: Collection::new(Volumes::new(spdk.clone(), identity), &shared),
            },
            hosts: NvmeHostService {
                nvme_hosts: Collection::new(nvme_hosts, &shared),
            },
            masks: NvmeNamespaceMaskService {
                nvme_namespace_masks: Collection::new(nvme_namespace_masks, &shared),
            },
            nvme: FrontendNvmeService {
                nvme_subsystems,
                nvme_controllers: Collection::new(Plugged::new(nvme_controllers, &slots), &shared),
                nvme_namespaces,
            },
            virtio_blk: FrontendVirtioBlkService {
                virtio_blks: Collection::new(Plugged::new(virtio_blks, &slots), &shared),
            },
            virtio_scsi,
            shared,
            spdk,
            health,
            reservations,
            announcement: Arc::default(),
        }
    }

    /// Creates the volumes of the configuration, and loads all stored records into memory, from which they can be read
    /// at once. The returned future replays the records into SPDK, and then reconciles SPDK with all records until the
    /// server stops.
    ///
    /// # Errors
    /// One line for the operator.
    pub async fn restore(
        &self,
        config: &Config,
    ) -> Result<impl Future<Output = ()> + Send + use<>, String> {
        let collections = Collections {
            malloc: &self.malloc.malloc_volumes,
            null: &self.null.null_volumes,
            aio: &self.aio.aio_volumes,
        };
        for volume in &config.volumes {
            let made = configured::make(volume, &collections).await;
            made.map_err(|error| format!("volume {:?}: {error}", volume.name()))?;
        }
        let begun = Instant::now();
        let reconciler = Reconciler::new(&self.shared, self.records());
        let aside = |entry: &_| self.reservations.restore(entry);
        let names = reconciler.load(aside).await?;
        let (services, discovery) = (self.clone(), config.discovery_addr);
        let announced = config
            .discovery_mdns
            .then(|| Arc::clone(&self.announcement));
        let takes_commands = config.spdk_rpc.is_some();
        tokio::spawn(Arc::clone(&self.reservations).keep());
        Ok(async move {
            reconciler.replay(&names).await;
            services.shared.set_replay(begun.elapsed());
            services.shared.set_restored();
            if let Some(address) = discovery {
                let spdk = services.spdk.clone();
                tokio::spawn(discovery::open(spdk, address, announced));
            }
            services.watch(takes_commands);
            reconciler.run().await;
        })
    }

    /// Returns the statistics of the store, and the duration of the replay of the last run's records; `None` until the
    /// replay is complete.
    pub fn store(&self) -> (Stats, Option<Duration>) {
        (self.shared.store().stats(), self.shared.replay())
    }

    /// Returns the handle to SPDK.
    pub fn spdk(&self) -> &Handle {
        &self.spdk
    }

    /// Returns the event log.
    pub fn events(&self) -> &Arc<Log> {
        &self.shared.events
    }

    /// Returns the service of all objects, independent of their kinds.
    pub fn objects(&self) -> Arc<Objects> {
        Objects::new(
            &self.shared,
            &self.spdk,
            &self.health,
            self.records(),
            &self.nvme.nvme_subsystems,
        )
    }

    /// Returns the faults of devices and objects.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Returns the conditions of objects that differ from their records.
    pub fn conditions(&self) -> &Conditions {
        &self.shared.conditions
    }

    /// Returns the stored records that cannot be used.
    pub fn unusable(&self) -> Vec<(Key, UnusableRecord)> {
        self.shared.unusable.all()
    }

    /// Returns the registry of claims.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// Drains the changes in flight and refuses further ones. Call before SPDK stops.
    pub async fn stop(&self) {
        let announcement = Arc::clone(&self.announcement);
        let withdrawn = tokio::task::spawn_blocking(move || announcement.withdraw());
        self.shared.stop().await;
        let _ = withdrawn.await;
    }

    /// Returns the backends that the shutdown of SPDK may wait for: files and paths.
    pub fn backends(&self) -> Vec<String> {
        let paths = self.nvme_remote.nvme_paths.objects().into_iter();
        let files = self.aio.aio_volumes.objects().into_iter();
        let paths = paths.map(|(name, _)| name.to_string());
        paths
            .chain(files.map(|(name, _)| name.to_string()))
            .collect()
    }
}

/// Builds the service of remote controllers, with their paths and namespaces.
fn nvme_remote(
    spdk: &Handle,
    shared: &Arc<Shared>,
    health: &Arc<Health>,
) -> NvmeRemoteControllerService {
    let controllers = NvmeRemoteControllers::new(spdk.clone(), Arc::clone(shared));
    let controllers = Collection::new(controllers, shared);
    let paths = NvmePaths::new(spdk.clone(), Arc::clone(&controllers), Arc::clone(health));
    NvmeRemoteControllerService {
        nvme_remote_namespaces: NvmeRemoteNamespaces::new(spdk.clone(), Arc::clone(&controllers)),
        nvme_remote_controllers: controllers,
        nvme_paths: Collection::new(paths, shared),
    }
}

/// Builds the service of the three virtio-scsi kinds, over one LUN table.
fn virtio_scsi(
    spdk: &Handle,
    shared: &Arc<Shared>,
    slots: &Arc<Slots>,
) -> FrontendVirtioScsiService {
    let luns = Arc::new(Luns::new(spdk.clone()));
    let targets = VirtioScsiTargets::new(spdk.clone(), Arc::clone(&luns));
    let targets = Collection::new(targets, shared);
    let controllers = VirtioScsiControllers::new(spdk.clone(), Arc::clone(&luns));
    let of_targets = VirtioScsiLuns::new(spdk.clone(), luns, Arc::clone(&targets));
    FrontendVirtioScsiService {
        virtio_scsi_targets: targets,
        virtio_scsi_controllers: Collection::new(Plugged::new(controllers, slots), shared),
        virtio_scsi_luns: Collection::new(of_targets, shared),
    }
}
