//! What hosts and virtual machines see: NVMe subsystems with their namespaces, controllers and hosts, virtio-blk
//! devices, and virtio-scsi controllers with their LUNs.

mod admission;
mod controller_spec;
mod discovery_referral;
mod host_recipe;
mod nvme_controller;
mod nvme_host;
mod nvme_host_service;
mod nvme_namespace;
mod nvme_namespace_mask;
mod nvme_subsystem;
mod old_keys;
mod pcie;
mod reservations;
mod subsystem_recipe;
mod virtio_blk;
mod virtio_scsi;
mod virtio_scsi_controller;
mod virtio_scsi_lun;
mod virtio_scsi_target;

use spdk::{Handle, bdev, errno, nvmf};

use crate::api::storage::VolumeStats;
use crate::backend::volume_stats;
use crate::error::Error;
use crate::resource::Key;

pub use discovery_referral::DiscoveryReferrals;
pub use nvme_controller::NvmeControllers;
pub use nvme_host::NvmeHosts;
pub use nvme_host_service::NvmeHostService;
pub use nvme_namespace::NvmeNamespaces;
pub use nvme_namespace_mask::NvmeNamespaceMasks;
pub(crate) use nvme_namespace_mask::check_namespace;
pub use nvme_subsystem::NvmeSubsystems;
pub(crate) use old_keys::EndOldKeys;
pub use reservations::Reservations;
pub use virtio_blk::VirtioBlks;
pub use virtio_scsi::Luns;
pub use virtio_scsi_controller::VirtioScsiControllers;
pub use virtio_scsi_lun::VirtioScsiLuns;
pub(crate) use virtio_scsi_lun::is_target_name;
pub use virtio_scsi_target::VirtioScsiTargets;

/// Sums the I/O counters of a subsystem's namespaces. Each namespace has exclusive use of its bdev, so the bdevs'
/// counters are used: SPDK has no finer ones.
async fn subsystem_stats(spdk: &Handle, nqn: String) -> Result<VolumeStats, Error> {
    let all = spdk.call(move |spdk| async move {
        let mut all = Vec::new();
        for namespace in nvmf::namespace::list(spdk, &nqn)? {
            match bdev::stats(spdk, &namespace.bdev).await {
                // Race: the bdev was removed while the others were queried.
                Err(error) if error.errno.0 == errno::ENODEV => {}
                stats => all.push(stats?),
            }
        }
        Ok::<_, spdk::Error>(all)
    });
    Ok(volume_stats(all.await??))
}

/// Returns whether the error means that SPDK no longer has the subsystem or its part, as after a removal through
/// SPDK's own commands.
fn is_gone(error: &spdk::Error) -> bool {
    matches!(error.errno.0, errno::ENOENT | errno::ENODEV)
}

/// Returns the key that the owner of this name in the socket directory claims.
fn socket_key(name: &str) -> Key {
    Key::from(format!("socket/{name}"))
}
