//! The API's objects, for metrics.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use crate::resource::volume_ref::VolumeRef;
use crate::resource::{Condition, Key, Meta, Name};
use crate::services::Services;

/// Number of objects of a kind in one condition.
#[derive(Debug)]
pub(super) struct Count {
    pub kind: String,
    pub condition: &'static str,
    pub number: u64,
}

/// Counts the objects of each kind in each condition.
pub(super) fn counts(services: &Services) -> Vec<Count> {
    let mut others: HashMap<String, [u64; 2]> = HashMap::new();
    for (key, condition) in services.conditions().all() {
        let of = match condition {
            Condition::Applied => continue,
            Condition::Pending(_) => 0,
            Condition::Deleting { .. } => 1,
        };
        let collection = key.as_str().rsplit('/').nth(1).unwrap_or_default();
        others.entry(collection.to_owned()).or_default()[of] += 1;
    }
    let of = |meta: &Meta, all: usize, offline: u64| {
        let all = u64::try_from(all).unwrap_or(u64::MAX);
        let [pending, deleting] = others.get(meta.collection()).copied().unwrap_or_default();
        let applied =
            (all.saturating_sub(pending).saturating_sub(deleting)).saturating_sub(offline);
        let numbers = [
            ("applied", applied),
            ("offline", offline),
            ("pending", pending),
            ("deleting", deleting),
        ];
        let kind = meta.kind().to_owned();
        numbers.map(|(condition, number)| Count {
            kind: kind.clone(),
            condition,
            number,
        })
    };
    macro_rules! count {
        ($($collection:expr),* $(,)?) => {
            [$({
                let names = || $collection.objects().into_iter().map(|(name, _)| name).collect();
                let offline = offline(services, names);
                of($collection.meta(), $collection.count(), offline)
            }),*].into_iter().flatten().collect()
        };
    }
    count![
        services.null.null_volumes,
        services.malloc.malloc_volumes,
        services.aio.aio_volumes,
        services.nvme.nvme_subsystems,
        services.nvme.nvme_controllers,
        services.nvme.nvme_namespaces,
        services.hosts.nvme_hosts,
        services.masks.nvme_namespace_masks,
        services.nvme_remote.nvme_remote_controllers,
        services.nvme_remote.nvme_paths,
        services.credentials.nvme_credentials,
        services.encryption.encrypted_volumes,
        services.qos.qos_volumes,
        services.delay.delay_volumes,
        services.referrals.discovery_referrals,
        services.virtio_blk.virtio_blks,
        services.virtio_scsi.virtio_scsi_targets,
        services.virtio_scsi.virtio_scsi_controllers,
        services.virtio_scsi.virtio_scsi_luns,
    ]
}

/// Pending objects, and offline ones, with a metric of their own: the first by name of each.
const WAITING_MAX: usize = 64;

/// Maximum length of a reason in a label, in characters.
const REASON_MAX: usize = 200;

/// An object that cannot be created, or used, at the moment.
#[derive(Debug)]
pub(super) struct Waiting {
    pub object: String,
    pub reason: String,
    pub since: SystemTime,
}

impl Waiting {
    fn new(object: &Key, reason: &str, since: SystemTime) -> Self {
        Self {
            object: object.as_str().to_owned(),
            reason: reason.chars().take(REASON_MAX).collect(),
            since,
        }
    }
}

/// The pending objects, and stored records that cannot be used, with their reasons.
pub(super) fn waiting(services: &Services) -> Vec<Waiting> {
    let all = services.conditions().all().into_iter();
    let waiting = all.filter_map(|(key, condition)| match condition {
        Condition::Pending(pending) => Some(Waiting::new(&key, &pending.reason, pending.since)),
        Condition::Applied | Condition::Deleting { .. } => None,
    });
    let unusable = services.unusable().into_iter();
    let unusable = unusable.map(|(key, record)| Waiting::new(&key, &record.reason, record.since));
    // Those do not come by themselves.
    unusable.chain(waiting).take(WAITING_MAX).collect()
}

/// The objects whose own device has failed, with the reasons.
pub(super) fn out_of_order(services: &Services) -> Vec<Waiting> {
    let health = services.health();
    let faults = health.faults().into_iter();
    let named = faults.filter_map(|(key, fault)| {
        let object = health.object(&key)?;
        let one = Waiting::new(object.key(), &fault.what, fault.since);
        Some((object, one))
    });
    // One reason for each object.
    let by_name: BTreeMap<Name, Waiting> = named.collect();
    by_name.into_values().take(WAITING_MAX).collect()
}

/// Counts the objects that are applied but unusable, because a device they depend on has failed.
fn offline(services: &Services, names: impl FnOnce() -> Vec<Name>) -> u64 {
    let health = services.health();
    if health.is_fine() {
        return 0;
    }
    let is_applied = |name: &Name| services.conditions().of(name.key()) == Condition::Applied;
    let names = names().into_iter();
    let offline = names.filter(|name| is_applied(name) && health.fault_of(name).is_some());
    u64::try_from(offline.count()).unwrap_or(u64::MAX)
}

/// The subsystems: name and NQN.
pub(super) fn subsystems(services: &Services) -> Vec<(String, String)> {
    let subsystems = services.nvme.nvme_subsystems.objects().into_iter();
    subsystems
        .map(|(name, subsystem)| {
            let nqn = subsystem.spec.map(|spec| spec.nqn).unwrap_or_default();
            (name.to_string(), nqn)
        })
        .collect()
}

/// A namespace and its volume.
#[derive(Debug)]
pub(super) struct Namespace {
    pub name: String,
    pub subsystem: String,
    pub nsid: i32,
    pub volume: String,
    pub bdev: String,
}

/// Lists all namespaces.
pub(super) fn namespaces(services: &Services) -> Vec<Namespace> {
    let namespaces = services.nvme.nvme_namespaces.objects().into_iter();
    namespaces
        .map(|(name, namespace)| {
            let spec = namespace.spec.unwrap_or_default();
            let volume = VolumeRef::parse(&spec.volume_name_ref);
            let bdev = volume.map_or_else(|_| String::new(), |volume| volume.bdev().to_owned());
            let parent = name.parent().map(|key| key.as_str().to_owned());
            Namespace {
                name: name.to_string(),
                subsystem: parent.unwrap_or_default(),
                nsid: spec.host_nsid,
                volume: volume_of(services, &bdev),
                bdev,
            }
        })
        .collect()
}

/// The API name of the volume with this bdev; the bdev's name if the API has no such volume.
pub(super) fn volume_of(services: &Services, bdev: &str) -> String {
    let owner = services.registry().owner(&Key::bdev(bdev));
    owner.map_or_else(|| bdev.to_owned(), |name| name.to_string())
}
