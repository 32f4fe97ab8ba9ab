//! VirtioBlk: a volume as a virtio-blk device of a virtual machine, served at a vhost-user socket. Its limits are the
//! QoS limits of the volume, to which the device has exclusive access.
//!
//! With vhost-user, the virtual machine decides the number of queues: `max_io_qps` is stored and returned, for whoever
//! configures the device in the machine.

use std::path::PathBuf;

use spdk::bdev::{self, Presence, qos};
use spdk::vhost::blk;
use spdk::{Handle, Spdk, errno};

use super::{pcie, socket_key};
use crate::api::storage::{PciEndpoint, VirtioBlk, VolumeStats};
use crate::backend::{stats_if, volume_at_fault, volume_gone};
use crate::error::{Error, Violations};
use crate::health::{Presences, Replaced};
use crate::kvm::{Model, Pluggable};
use crate::middleend::limits;
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{CallContext, Change, Claims, Kind, Name, Stage};

/// The kind of VirtioBlk.
pub struct VirtioBlks {
    spdk: Handle,
    /// The bdev of each device at the time it was created.
    volumes: Presences,
}

impl VirtioBlks {
    /// Creates the kind for devices of this SPDK.
    pub fn new(spdk: Handle) -> Self {
        Self {
            spdk,
            volumes: Presences::default(),
        }
    }
}

impl Kind for VirtioBlks {
    type Object = VirtioBlk;

    const STAGE: Stage = Stage::Door;

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

    fn claims(&self, name: &Name, object: &VirtioBlk) -> Claims {
        let claims = Claims::new().owns(socket_key(name.id()));
        let Ok(volume) = VolumeRef::parse(&object.volume_name_ref) else {
            return claims;
        };
        let claims = volume.taken_in(claims);
        match &object.max_limit {
            Some(limit) if !limits::is_none(limit) => claims.owns(limits::key(volume.bdev())),
            _ => claims,
        }
    }

    fn volume_ref<'a>(&self, object: &'a VirtioBlk) -> Option<&'a str> {
        Some(&object.volume_name_ref)
    }

    /// A device whose bdev was removed is recreated once the volume is back: SPDK never attaches another bdev to an
    /// existing device, and a connected virtual machine keeps the old one until it disconnects.
    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: VirtioBlk,
    ) -> Result<VirtioBlk, Error> {
        let is_known = !object.name.is_empty();
        let device = Device::of(name, &object);
        let bdev = device.bdev.clone();
        let made = self.spdk.call(async move |spdk| match is_known {
            true => repair(spdk, &device).await,
            false => make(spdk, &device).await.map(Some),
        });
        let volume = &object.volume_name_ref;
        let made = made.await?;
        let made = made.map_err(|error| volume_at_fault("volume_name_ref", volume, error))?;
        self.volumes
            .note(name, made.ok_or_else(|| volume_gone(&bdev))?);
        Ok(object)
    }

    /// Without its bdev, the virtual machine sees a disk of size 0.
    fn is_lost(&self, name: &Name, _: &VirtioBlk) -> bool {
        !self.volumes.is_there(name)
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
        let volume = &change.wanted.volume_name_ref;
        let settled = self.volumes.settle(name, changed.await?);
        settled.map_err(|error| volume_at_fault("volume_name_ref", volume, error))?;
        Ok(change.wanted)
    }

    /// A device of the other volume, and the limits of a volume that has none now.
    async fn withdraw(
        &self,
        _: &CallContext,
        name: &Name,
        back: &Change<VirtioBlk>,
    ) -> Result<(), Error> {
        let (tried, now) = (Device::of(name, &back.old), Device::of(name, &back.wanted));
        let withdrawn = self
            .spdk
            .call(async move |spdk| withdraw(spdk, &tried, &now).await);
        Error::joined(withdrawn.await)
    }

    async fn remove(&self, _: &CallContext, name: &Name, object: &VirtioBlk) -> Result<(), Error> {
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

/// Parameters to create one device.
struct Device {
    name: String,
    bdev: String,
    limits: qos::Limits,
}

impl Device {
    /// Returns the device of an object that has passed the checks.
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

/// Sets the volume's limits, then creates the device.
async fn make(spdk: Spdk, device: &Device) -> Result<Presence, spdk::Error> {
    let Device { name, bdev, limits } = device;
    limit(spdk, bdev, qos::Limits::default(), *limits).await?;
    let made = match bdev::look_after(spdk, &watcher(name), bdev) {
        Ok(presence) => blk::create(spdk, name, bdev).await.map(|()| presence),
        Err(error) => Err(error),
    };
    let error = match made {
        Ok(presence) => return Ok(presence),
        Err(error) => error,
    };
    bdev::leave(spdk, &watcher(name));
    match limit(spdk, bdev, *limits, qos::Limits::default()).await {
        // The bdev is gone, and its limits with it.
        Err(left) if left.errno.0 == errno::ENODEV => Err(error),
        lifted => Err(error.after_undo(lifted)),
    }
}

/// Keeps the device if it has its volume, under a connected machine too; else recreates it. `None` without the volume.
async fn repair(spdk: Spdk, device: &Device) -> Result<Option<Presence>, spdk::Error> {
    let Some(volume) = bdev::own_name(spdk, &device.bdev)? else {
        return Ok(None);
    };
    if blk::volume_of(spdk, &device.name) != Some(volume) {
        remove(spdk, device).await?;
        return make(spdk, device).await.map(Some);
    }
    // Without limits of its own the volume may have those of a QosVolume.
    if device.limits != qos::Limits::default() {
        qos::ensure(spdk, &device.bdev, device.limits).await?;
    }
    bdev::look_after(spdk, &watcher(&device.name), &device.bdev).map(Some)
}

/// Removes what an update to `tried` left beside `now`: the device, if it has the volume that was tried, and limits.
/// Idempotent. EBUSY while a machine uses the wrong volume.
async fn withdraw(spdk: Spdk, tried: &Device, now: &Device) -> Result<(), spdk::Error> {
    let other = bdev::own_name(spdk, &tried.bdev)?;
    if other.is_none() {
        return Ok(());
    }
    let is_same = other == bdev::own_name(spdk, &now.bdev)?;
    if !is_same && blk::volume_of(spdk, &tried.name) == other {
        return remove(spdk, tried).await;
    }
    let none = qos::Limits::default();
    match is_same && now.limits != none {
        true => Ok(()),
        false => limit(spdk, &tried.bdev, tried.limits, none).await,
    }
}

/// Removes the device, then the limits: a device that stays, under a connected machine, keeps them. Idempotent.
async fn remove(spdk: Spdk, device: &Device) -> Result<(), spdk::Error> {
    match blk::delete(spdk, &device.name).await {
        Err(error) if error.errno.0 != errno::ENODEV => return Err(error),
        _ => bdev::leave(spdk, &watcher(&device.name)),
    }
    match limit(spdk, &device.bdev, device.limits, qos::Limits::default()).await {
        // The bdev is gone, and its limits with it.
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        lifted => lifted,
    }
}

fn watcher(name: &str) -> String {
    format!("vhost-user-blk/{name}")
}

/// Changes the limits in place, under a connected virtual machine; for another volume, recreates the device, which
/// SPDK refuses while a machine is connected.
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
