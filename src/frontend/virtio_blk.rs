//! VirtioBlk: a volume as a virtio-blk device of a virtual machine, which finds it at a vhost-user
//! socket. Its limits are those of the volume, which nobody else moves data through.
//!
//! With vhost-user it is the machine that decides how many queues there are: `max_io_qps` is kept
//! and answered, for whoever makes the machine's device.

use std::path::PathBuf;

use spdk::bdev::qos;
use spdk::vhost::blk;
use spdk::{Handle, Spdk};

use super::{errno, no_volume, pcie, socket_key};
use crate::api::storage::{PciEndpoint, VirtioBlk, VolumeStats};
use crate::backend::stats_of;
use crate::error::{Error, Violations};
use crate::kvm::{Model, Pluggable};
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
                format!(
                    "{}: 1 to {}, or 0 for what the machine asks for",
                    object.max_io_qps,
                    blk::MAX_QUEUES
                ),
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

    async fn create(
        &self,
        _: &CallContext,
        name: &Name,
        wanted: VirtioBlk,
    ) -> Result<VirtioBlk, Error> {
        let device = Device::of(name, &wanted);
        let made = self
            .spdk
            .call(move |spdk| async move { make(spdk, &device).await });
        made.await?.map_err(|error| at_fault(&wanted, error))?;
        Ok(wanted)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<VirtioBlk>,
    ) -> Result<VirtioBlk, Error> {
        let (old, new) = (
            Device::of(name, &change.old),
            Device::of(name, &change.wanted),
        );
        let changed = self
            .spdk
            .call(move |spdk| async move { self::change(spdk, &old, &new).await });
        changed
            .await?
            .map_err(|error| at_fault(&change.wanted, error))?;
        Ok(change.wanted)
    }

    async fn delete(&self, _: &CallContext, name: &Name, object: &VirtioBlk) -> Result<(), Error> {
        let device = Device::of(name, object);
        let removed = self
            .spdk
            .call(move |spdk| async move { remove(spdk, &device).await });
        Ok(removed.await??)
    }

    async fn stats(&self, name: &Name, object: &VirtioBlk) -> Result<VolumeStats, Error> {
        stats_of(&self.spdk, Device::of(name, object).bdev).await
    }
}

impl Pluggable for VirtioBlks {
    const MODEL: Model = Model::VirtioBlk;
    const FIELD: &'static str = "pcie_id";

    fn endpoint(object: &VirtioBlk) -> Option<&PciEndpoint> {
        object.pcie_id.as_ref()
    }

    fn socket(name: &Name) -> PathBuf {
        name.id().into()
    }
}

/// All that it takes to make one device.
struct Device {
    name: String,
    bdev: String,
    limits: qos::Limits,
}

impl Device {
    /// The device of an object that has passed the checks.
    fn of(name: &Name, object: &VirtioBlk) -> Self {
        let volume = VolumeRef::parse(&object.volume_name_ref);
        Self {
            name: name.id().to_owned(),
            bdev: volume
                .map(|volume| volume.bdev().to_owned())
                .unwrap_or_default(),
            limits: object
                .max_limit
                .as_ref()
                .map(limits::of)
                .unwrap_or_default(),
        }
    }
}

/// Limits the volume, and then shows it.
async fn make(spdk: Spdk, device: &Device) -> Result<(), spdk::Error> {
    limit(spdk, &device.bdev, qos::Limits::default(), device.limits).await?;
    let made = blk::create(spdk, &device.name, &device.bdev).await;
    if made.is_err() {
        // Where that fails too the volume has gone, and its limits with it.
        let _ = limit(spdk, &device.bdev, device.limits, qos::Limits::default()).await;
    }
    made
}

/// A device that is not there is as gone as one that is removed.
async fn remove(spdk: Spdk, device: &Device) -> Result<(), spdk::Error> {
    match blk::delete(spdk, &device.name).await {
        Err(error) if error.errno.0 != errno::ENODEV => return Err(error),
        _ => {}
    }
    match limit(spdk, &device.bdev, device.limits, qos::Limits::default()).await {
        // The volume has gone, and its limits with it.
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        result => result,
    }
}

/// Limits the same volume otherwise, under a machine that is connected; or puts another one in its
/// place, where none is. If that fails, the old one is there again.
async fn change(spdk: Spdk, old: &Device, new: &Device) -> Result<(), spdk::Error> {
    if old.bdev == new.bdev {
        return limit(spdk, &new.bdev, old.limits, new.limits).await;
    }
    remove(spdk, old).await?;
    match make(spdk, new).await {
        Err(error) => Err(error.after_undo(make(spdk, old).await)),
        made => made,
    }
}

async fn limit(
    spdk: Spdk,
    bdev: &str,
    before: qos::Limits,
    after: qos::Limits,
) -> Result<(), spdk::Error> {
    if before == after {
        return Ok(());
    }
    qos::set(spdk, bdev, after).await
}

/// What SPDK found wrong, told of the field that is to blame.
fn at_fault(object: &VirtioBlk, error: spdk::Error) -> Error {
    match error.errno.0 {
        errno::ENODEV => no_volume(&object.volume_name_ref),
        _ => error.into(),
    }
}
