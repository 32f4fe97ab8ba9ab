//! VirtioScsiLun: a volume as a disk of the virtual machine connected to a virtio-scsi controller; see
//! [`virtio_scsi`](super::virtio_scsi).

use std::sync::Arc;

use prost::Message;

use super::virtio_scsi::{Luns, MAX_LUNS};
use super::virtio_scsi_target::{VirtioScsiTargets, most};
use crate::api::storage::{VirtioScsiLun, VolumeStats};
use crate::backend::{stats_if, volume_at_fault};
use crate::error::{Error, Violations};
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{CallContext, Change, Claims, Collection, Key, Kind, Name, Others, Stage};

const TARGETS: &str = "virtioScsiTargets";
const CONTROLLERS: &str = "virtioScsiControllers";

/// The kind of VirtioScsiLun.
pub struct VirtioScsiLuns {
    spdk: spdk::Handle,
    luns: Arc<Luns>,
    targets: Others<VirtioScsiTargets>,
}

impl VirtioScsiLuns {
    /// Creates the kind for LUNs of these targets, and of controllers.
    pub fn new(
        spdk: spdk::Handle,
        luns: Arc<Luns>,
        targets: Arc<Collection<VirtioScsiTargets>>,
    ) -> Self {
        Self {
            spdk,
            luns,
            targets: Others::of(targets),
        }
    }

    /// Returns the maximum number of LUNs of the target or controller with this ID.
    fn most(&self, group: &str) -> usize {
        let target = self.targets.object(&key(TARGETS, group));
        target.as_ref().map_or(MAX_LUNS, most)
    }
}

impl Kind for VirtioScsiLuns {
    type Object = VirtioScsiLun;

    const STAGE: Stage = Stage::Part;

    fn check(&self, object: &VirtioScsiLun, violations: &mut Violations) {
        if let Err(reason) = VolumeRef::parse(&object.volume_name_ref) {
            violations.add("volume_name_ref", reason);
        }
        if group_of(&object.target_name_ref).is_none() {
            violations.add(
                "target_name_ref",
                format!(
                    "{:?} is not the name of a target or a controller: {TARGETS}/ID, {CONTROLLERS}/ID, \
                     volumes/ID or ID",
                    object.target_name_ref
                ),
            );
        }
    }

    fn claims(&self, _: &Name, object: &VirtioScsiLun) -> Claims {
        let claims = match VolumeRef::parse(&object.volume_name_ref) {
            Ok(volume) => volume.taken_in(Claims::new()),
            Err(_) => Claims::new(),
        };
        let text = object.target_name_ref.as_str();
        let Some(group) = group_of(text) else {
            return claims;
        };
        let (target, controller) = (key(TARGETS, group), key(CONTROLLERS, group));
        let claims = match text.split_once('/') {
            Some((TARGETS, _)) => claims.needs(target.clone()),
            Some((CONTROLLERS, _)) => claims.needs(controller.clone()),
            _ => claims.needs_either(target.clone(), controller.clone()),
        };
        claims.shares(target).shares(controller)
    }

    fn volume_ref<'a>(&self, object: &'a VirtioScsiLun) -> Option<&'a str> {
        Some(&object.volume_name_ref)
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: VirtioScsiLun,
    ) -> Result<VirtioScsiLun, Error> {
        let Lun { group, bdev } = Lun::of(&object);
        let shown = match object.name.is_empty() || !self.luns.has(group, name.id()) {
            true => {
                let most = self.most(group);
                self.luns.add(group, name.id(), &bdev, most).await
            }
            false => self.luns.show_again(group, name.id(), &bdev).await,
        };
        shown.map_err(|error| no_volume(&object, error))?;
        Ok(object)
    }

    /// Virtual machines see the disk removed together with its bdev.
    fn is_lost(&self, name: &Name, object: &VirtioScsiLun) -> bool {
        !self.luns.is_there(Lun::of(object).group, name.id())
    }

    fn kept(&self, name: &Name, object: &VirtioScsiLun) -> Vec<u8> {
        let number = self.luns.number(Lun::of(object).group, name.id());
        let number = number.map(u32::from);
        Kept { number }.encode_to_vec()
    }

    fn restore(&self, name: &Name, object: &VirtioScsiLun, kept: &[u8]) {
        let number = Kept::decode(kept).ok().and_then(|kept| kept.number);
        let number = number.and_then(|number| u8::try_from(number).ok());
        let Lun { group, bdev } = Lun::of(object);
        self.luns.restore(group, name.id(), &bdev, number);
    }

    /// Virtual machines see the old disk removed and the new one added, under the same SCSI target number at the same
    /// controller. If the new disk fails, the old one is added again (rollback).
    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<VirtioScsiLun>,
    ) -> Result<VirtioScsiLun, Error> {
        let (old, new) = (Lun::of(&change.old), Lun::of(&change.wanted));
        if old == new {
            return Ok(change.wanted);
        }
        let groups = [old.group, new.group];
        let most = self.most(new.group);
        let replaced = self.luns.replace(groups, name.id(), &new.bdev, most).await;
        replaced.map_err(|error| no_volume(&change.wanted, error))?;
        Ok(change.wanted)
    }

    /// The disk at the other controller. At the same one the LUN takes its place.
    async fn withdraw(
        &self,
        _: &CallContext,
        name: &Name,
        back: &Change<VirtioScsiLun>,
    ) -> Result<(), Error> {
        let (tried, now) = (Lun::of(&back.old), Lun::of(&back.wanted));
        match tried.group == now.group {
            true => Ok(()),
            false => self.luns.remove(tried.group, name.id()).await,
        }
    }

    fn settled(&self, name: &Name) {
        self.luns.settled(name.id());
    }

    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        object: &VirtioScsiLun,
    ) -> Result<(), Error> {
        self.luns.remove(Lun::of(object).group, name.id()).await
    }

    async fn stats(&self, name: &Name, object: &VirtioScsiLun) -> Result<VolumeStats, Error> {
        let Lun { group, bdev } = Lun::of(object);
        let is_there = self.luns.is_there(group, name.id());
        stats_if(is_there, &self.spdk, bdev).await
    }
}

/// Stored state beyond the message: the number by which virtual machines identify the LUN.
#[derive(Clone, PartialEq, prost::Message)]
struct Kept {
    /// The SCSI target number.
    #[prost(uint32, optional, tag = "1000")]
    number: Option<u32>,
}

fn no_volume(object: &VirtioScsiLun, error: Error) -> Error {
    match error {
        Error::NotFound { .. } => {
            let error = spdk::Error::new("show LUN", spdk::errno::ENODEV);
            volume_at_fault("volume_name_ref", &object.volume_name_ref, error)
        }
        other => other,
    }
}

/// The settings of an object that has passed the checks.
#[derive(PartialEq, Eq)]
struct Lun<'a> {
    /// The ID of its target or controller.
    group: &'a str,
    bdev: String,
}

impl<'a> Lun<'a> {
    fn of(object: &'a VirtioScsiLun) -> Self {
        Self {
            group: group_of(&object.target_name_ref).unwrap_or_default(),
            bdev: VolumeRef::parse(&object.volume_name_ref)
                .map_or_else(|_| String::new(), |volume| volume.bdev().to_owned()),
        }
    }
}

/// Returns the ID in a `target_name_ref`.
fn group_of(text: &str) -> Option<&str> {
    let id = match text.split_once('/') {
        None => text,
        Some(("volumes" | TARGETS | CONTROLLERS, id)) => id,
        Some(_) => return None,
    };
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

/// Returns whether the text names a target or a controller.
pub(crate) fn is_target_name(text: &str) -> bool {
    group_of(text).is_some()
}

fn key(collection: &str, id: &str) -> Key {
    Key::from(format!("{collection}/{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_and_a_controller_are_named_in_every_form() {
        for text in [
            "a",
            "volumes/a",
            "virtioScsiTargets/a",
            "virtioScsiControllers/a",
        ] {
            assert_eq!(group_of(text), Some("a"), "{text}");
        }
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "volumes/",
            "virtioBlks/a",
            "virtioScsiTargets/a/b",
        ] {
            assert_eq!(group_of(text), None, "{text}");
        }
    }
}
