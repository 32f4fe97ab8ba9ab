//! VirtioBlk: a volume as a virtio-blk device of a virtual machine, which finds it at a vhost-user
//! socket. Its limits are those of the volume, which nobody else moves data through.

use spdk::bdev::qos;
use spdk::vhost::blk;
use spdk::{Handle, Spdk, bdev};

use super::{errno, no_volume, pcie, socket_key};
use crate::api::storage::{VirtioBlk, VolumeStats};
use crate::backend::volume_stats;
use crate::error::{Error, Violations};
use crate::middleend::limits;
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{CallContext, Change, Kind, Name, Uses};

/// The kind.
pub struct VirtioBlks {
    spdk: Handle,
}

impl VirtioBlks {
    /// Devices of this SPDK.
    pub fn new(spdk: Handle) -> Self {
        Self { spdk }
    }
}

impl Kind for VirtioBlks {
    type Object = VirtioBlk;

    fn check(&self, object: &VirtioBlk, violations: &mut Violations) {
        if let Some(endpoint) = &object.pcie_id {
            pcie::check_emulated("pcie_id", endpoint, violations);
        }
        if let Err(reason) = VolumeRef::parse(&object.volume_name_ref) {
            violations.add("volume_name_ref", reason);
        }
        if !(0..=i64::from(blk::MAX_QUEUES)).contains(&object.max_io_qps) {
            violations.add(
                "max_io_qps",
                format!("{}: 1 to {max}, or 0 for {max}", object.max_io_qps, max = blk::MAX_QUEUES),
            );
        }
        if let Some(limit) = &object.min_limit {
            limits::check_no_minimum(limit, "min_limit", violations);
        }
        if let Some(limit) = &object.max_limit {
            limits::check(limit, "max_limit", violations);
        }
    }

    fn uses(&self, name: &Name, object: &VirtioBlk) -> Uses {
        let uses = Uses::new().owns(socket_key(name.id()));
        let Ok(volume) = VolumeRef::parse(&object.volume_name_ref) else {
            return uses;
        };
        let uses = volume.taken_in(uses);
        match &object.max_limit {
            Some(limit) if !limits::is_none(limit) => uses.owns(limits::key(volume.bdev())),
            _ => uses,
        }
    }

    async fn create(&self, _: &CallContext, name: &Name, wanted: VirtioBlk) -> Result<VirtioBlk, Error> {
        let device = Device::of(name, &wanted);
        let made = self.spdk.call(move |spdk| async move { make(spdk, &device).await });
        made.await?.map_err(|error| at_fault(&wanted, error))?;
        Ok(wanted)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<VirtioBlk>,
    ) -> Result<VirtioBlk, Error> {
        let (old, new) = (Device::of(name, &change.old), Device::of(name, &change.wanted));
        let changed = self.spdk.call(move |spdk| async move {
            if old.options.bdev == new.options.bdev {
                adjust(spdk, &old, &new).await
            } else {
                rebuild(spdk, &old, &new).await
            }
        });
        changed.await?.map_err(|error| at_fault(&change.wanted, error))?;
        Ok(change.wanted)
    }

    async fn delete(&self, _: &CallContext, name: &Name, object: &VirtioBlk) -> Result<(), Error> {
        let device = Device::of(name, object);
        let removed = self.spdk.call(move |spdk| async move { remove(spdk, &device).await });
        Ok(removed.await??)
    }

    async fn stats(&self, name: &Name, object: &VirtioBlk) -> Result<VolumeStats, Error> {
        let volume = Device::of(name, object).options.bdev;
        let stats = self.spdk.call(move |spdk| async move { bdev::stats(spdk, &volume).await });
        Ok(volume_stats([stats.await??]))
    }
}

/// All that it takes to make one device.
struct Device {
    options: blk::Options,
    limits: qos::Limits,
}

impl Device {
    /// The device of an object that has passed the checks.
    fn of(name: &Name, object: &VirtioBlk) -> Self {
        let volume = VolumeRef::parse(&object.volume_name_ref);
        let queues = u32::try_from(object.max_io_qps).ok().filter(|queues| *queues > 0);
        Self {
            options: blk::Options {
                name: name.id().to_owned(),
                bdev: volume.map(|volume| volume.bdev().to_owned()).unwrap_or_default(),
                queues: queues.unwrap_or(blk::MAX_QUEUES),
            },
            limits: object.max_limit.as_ref().map(limits::of).unwrap_or_default(),
        }
    }
}

/// Limits the volume, and then shows it.
async fn make(spdk: Spdk, device: &Device) -> Result<(), spdk::Error> {
    limit(spdk, device, qos::Limits::default(), device.limits).await?;
    let made = blk::create(spdk, &device.options).await;
    if made.is_err() {
        limit(spdk, device, device.limits, qos::Limits::default()).await?;
    }
    made
}

/// A device that is not there is as gone as one that is removed.
async fn remove(spdk: Spdk, device: &Device) -> Result<(), spdk::Error> {
    match blk::delete(spdk, &device.options.name).await {
        Err(error) if error.errno.0 != errno::ENODEV => return Err(error),
        _ => {}
    }
    match limit(spdk, device, device.limits, qos::Limits::default()).await {
        // The volume has gone, and its limits with it.
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        result => result,
    }
}

/// Changes what a machine that is connected need not notice.
async fn adjust(spdk: Spdk, old: &Device, new: &Device) -> Result<(), spdk::Error> {
    let queues = new.options.queues;
    if old.options.queues != queues {
        blk::limit_queues(spdk, &new.options.name, queues)?;
    }
    let limited = limit(spdk, new, old.limits, new.limits).await;
    if limited.is_err() && old.options.queues != queues {
        blk::limit_queues(spdk, &old.options.name, old.options.queues)?;
    }
    limited
}

/// Puts another volume in the place of one that no machine is connected to; if that fails, the old
/// one is there again.
async fn rebuild(spdk: Spdk, old: &Device, new: &Device) -> Result<(), spdk::Error> {
    remove(spdk, old).await?;
    let made = make(spdk, new).await;
    if made.is_err() {
        make(spdk, old).await?;
    }
    made
}

async fn limit(
    spdk: Spdk,
    device: &Device,
    before: qos::Limits,
    after: qos::Limits,
) -> Result<(), spdk::Error> {
    if before == after {
        return Ok(());
    }
    qos::set(spdk, &device.options.bdev, after).await
}

/// What SPDK found wrong, told of the field that is to blame.
fn at_fault(object: &VirtioBlk, error: spdk::Error) -> Error {
    match error.errno.0 {
        errno::ENODEV => no_volume(&object.volume_name_ref),
        _ => error.into(),
    }
}
