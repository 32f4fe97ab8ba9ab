//! What the API has, for metrics.

use std::collections::HashMap;

use crate::resource::Key;
use crate::services::Services;

/// The number of objects of each kind.
pub(super) fn counts(services: &Services) -> Vec<(String, u64)> {
    macro_rules! count {
        ($($collection:expr),* $(,)?) => {
            vec![$((
                $collection.meta().kind().to_owned(),
                u64::try_from($collection.count()).unwrap_or(u64::MAX),
            )),*]
        };
    }
    count![
        services.null.null_volumes,
        services.malloc.malloc_volumes,
        services.aio.aio_volumes,
        services.nvme.nvme_subsystems,
        services.nvme.nvme_controllers,
        services.nvme.nvme_namespaces,
        services.nvme_remote.nvme_remote_controllers,
        services.nvme_remote.nvme_paths,
        services.encryption.encrypted_volumes,
        services.qos.qos_volumes,
        services.virtio_blk.virtio_blks,
        services.virtio_scsi.virtio_scsi_targets,
        services.virtio_scsi.virtio_scsi_controllers,
        services.virtio_scsi.virtio_scsi_luns,
    ]
}

/// Each subsystem: its name, its NQN and how many namespaces it has.
pub(super) fn subsystems(services: &Services) -> Vec<(String, String, u64)> {
    let mut namespaces: HashMap<Key, u64> = HashMap::new();
    for (name, _) in services.nvme.nvme_namespaces.objects() {
        if let Some(parent) = name.parent() {
            *namespaces.entry(parent).or_default() += 1;
        }
    }
    let subsystems = services.nvme.nvme_subsystems.objects().into_iter();
    subsystems
        .map(|(name, subsystem)| {
            let number = namespaces.get(name.key()).copied().unwrap_or_default();
            let nqn = subsystem.spec.map(|spec| spec.nqn).unwrap_or_default();
            (name.to_string(), nqn, number)
        })
        .collect()
}

/// What the API calls the volume of this bdev; the bdev's own name if it is none of the API's.
pub(super) fn volume_of(services: &Services, bdev: &str) -> String {
    let owner = services.registry().owner(&Key::bdev(bdev));
    owner.map_or_else(|| bdev.to_owned(), |name| name.to_string())
}
