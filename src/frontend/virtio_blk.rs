//! VirtioBlk: a volume as a virtio-blk device of a virtual machine, which finds it at a vhost-user
//! socket. Its limits are those of the volume, which nobody else moves data through.
//!
//! With vhost-user it is the machine that decides how many queues there are: `max_io_qps` is kept
//! and answered, for whoever makes the machine's device.

use std::path::PathBuf;

use spdk::bdev::{self, Presence, qos};
use spdk::vhost::blk;
use spdk::{Handle, Spdk};

use super::{errno, no_volume, pcie, socket_key};
use crate::api::storage::{PciEndpoint, VirtioBlk, VolumeStats};
use crate::backend::{stats_if, volume_gone};
use crate::error::{Error, Violations};
use crate::health::{Presences, Replaced};
use crate::kvm::{Model, Pluggable};
use crate::middleend::limits;
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{CallContext, Change, Kind, Name, Uses};

/// The kind.
pub struct VirtioBlks {
    spdk: Handle,
    /// The volume of each, as it was shown.
    volumes: Presences,
}

impl VirtioBlks {
    /// Devices of this SPDK.
    pub fn new(spdk: Handle) -> Self {
        Self {
            spdk,
            volumes: Presences::default(),
        }
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

    fn volume_ref<'a>(&self, object: &'a VirtioBlk) -> Option<&'a str> {
        Some(&object.volume_name_ref)
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
        let volume = made.await?.map_err(|error| at_fault(&wanted, error))?;
        self.volumes.note(name, volume);
        Ok(wanted)
    }

    /// A device whose volume went has none, also when that is back: SPDK gives another one only to a
    /// new device, and a machine that is connected keeps the old one.
    async fn renew(&self, _: &CallContext, name: &Name, object: &VirtioBlk) -> Result<(), Error> {
        if self.volumes.is_there(name) {
            return Ok(());
        }
        let device = Device::of(name, object);
        let bdev = device.bdev.clone();
        let renewed = self.spdk.call(move |spdk| async move {
            if bdev::lookup(spdk, &device.bdev)?.is_none() {
                return Ok(None);
            }
            remove(spdk, &device).await?;
            make(spdk, &device).await.map(Some)
        });
        let renewed = renewed.await?.map_err(|error| at_fault(object, error))?;
        self.volumes
            .note(name, renewed.ok_or_else(|| volume_gone(&bdev))?);
        Ok(())
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
        let changed = self.volumes.settle(name, changed.await?);
        changed.map_err(|error| at_fault(&change.wanted, error))?;
        Ok(change.wanted)
    }

    async fn delete(&self, _: &CallContext, name: &Name, object: &VirtioBlk) -> Result<(), Error> {
        let device = Device::of(name, object);
        let removed = self
            .spdk
            .call(move |spdk| async move { remove(spdk, &device).await });
        removed.await??;
        self.volumes.forget(name);
        Ok(())
    }

    async fn stats(&self, name: &Name, object: &VirtioBlk) -> Result<VolumeStats, Error> {
        let bdev = Device::of(name, object).bdev;
        stats_if(self.volumes.is_there(name), &self.spdk, bdev).await
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
async fn make(spdk: Spdk, device: &Device) -> Result<Presence, spdk::Error> {
    let Device { name, bdev, limits } = device;
    limit(spdk, bdev, qos::Limits::default(), *limits).await?;
    let made = match blk::create(spdk, name, bdev).await {
        Ok(()) => bdev::look_after(spdk, &watcher(name), bdev),
        Err(error) => Err(error),
    };
    if made.is_err() {
        // Where that fails too the volume has gone, and its limits with it.
        let _ = limit(spdk, bdev, *limits, qos::Limits::default()).await;
    }
    made
}

/// A device that is not there is as gone as one that is removed.
async fn remove(spdk: Spdk, device: &Device) -> Result<(), spdk::Error> {
    match blk::delete(spdk, &device.name).await {
        Err(error) if error.errno.0 != errno::ENODEV => return Err(error),
        _ => {}
    }
    bdev::leave(spdk, &watcher(&device.name));
    match limit(spdk, &device.bdev, device.limits, qos::Limits::default()).await {
        // The volume has gone, and its limits with it.
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        result => result,
    }
}

fn watcher(name: &str) -> String {
    format!("vhost-user-blk/{name}")
}

/// Limits the same volume otherwise, under a machine that is connected; or puts another one in its
/// place, where none is.
async fn change(
    spdk: Spdk,
    old: &Device,
    new: &Device,
) -> Result<Option<Replaced<Presence>>, spdk::Error> {
    if old.bdev == new.bdev {
        let limited = limit(spdk, &new.bdev, old.limits, new.limits).await;
        return limited.map(|()| None);
    }
    remove(spdk, old).await?;
    let made = make(spdk, new).await;
    Ok(Some(Replaced::by(made, make(spdk, old)).await))
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
