//! VirtioScsiLun: a volume as a disk of the virtual machine that is connected to a virtio-scsi
//! controller; see [`virtio_scsi`](super::virtio_scsi).

use std::sync::Arc;

use super::no_volume;
use super::virtio_scsi::{Luns, MAX_LUNS};
use super::virtio_scsi_target::{VirtioScsiTargets, most};
use crate::api::storage::{VirtioScsiLun, VolumeStats};
use crate::backend::stats_if;
use crate::error::{Error, Violations};
use crate::health::Exported;
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{CallContext, Change, Collection, Key, Kind, Name, Uses};

const TARGETS: &str = "virtioScsiTargets";
const CONTROLLERS: &str = "virtioScsiControllers";

/// The kind.
pub struct VirtioScsiLuns {
    spdk: spdk::Handle,
    luns: Arc<Luns>,
    targets: Arc<Collection<VirtioScsiTargets>>,
}

impl VirtioScsiLuns {
    /// LUNs of these targets, and of controllers.
    pub fn new(
        spdk: spdk::Handle,
        luns: Arc<Luns>,
        targets: Arc<Collection<VirtioScsiTargets>>,
    ) -> Self {
        Self {
            spdk,
            luns,
            targets,
        }
    }

    async fn add(&self, name: &Name, lun: &Lun<'_>, object: &VirtioScsiLun) -> Result<(), Error> {
        let target = self.targets.object(&key(TARGETS, lun.group));
        let most = target.as_ref().map_or(MAX_LUNS, most);
        match self.luns.add(lun.group, name.id(), &lun.bdev, most).await {
            Err(Error::NotFound { .. }) => Err(no_volume(&object.volume_name_ref)),
            result => result,
        }
    }
}

impl Kind for VirtioScsiLuns {
    type Object = VirtioScsiLun;

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

    fn uses(&self, _: &Name, object: &VirtioScsiLun) -> Uses {
        let uses = match VolumeRef::parse(&object.volume_name_ref) {
            Ok(volume) => volume.taken_in(Uses::new()),
            Err(_) => Uses::new(),
        };
        let text = object.target_name_ref.as_str();
        let Some(group) = group_of(text) else {
            return uses;
        };
        let (target, controller) = (key(TARGETS, group), key(CONTROLLERS, group));
        let needed = match text.split_once('/') {
            Some((TARGETS, _)) => target.clone(),
            Some((CONTROLLERS, _)) => controller.clone(),
            // Either will do.
            _ if self.targets.object(&target).is_some() => target.clone(),
            _ => controller.clone(),
        };
        uses.needs(needed).shares(target).shares(controller)
    }

    fn volume_ref<'a>(&self, object: &'a VirtioScsiLun) -> Option<&'a str> {
        Some(&object.volume_name_ref)
    }

    async fn create(
        &self,
        _: &CallContext,
        name: &Name,
        wanted: VirtioScsiLun,
    ) -> Result<VirtioScsiLun, Error> {
        self.add(name, &Lun::of(&wanted), &wanted).await?;
        Ok(wanted)
    }

    /// A machine sees the old disk go and the new one come. If the new one cannot, the old one does
    /// again.
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
        self.luns.remove(old.group, name.id()).await?;
        if let Err(error) = self.add(name, &new, &change.wanted).await {
            if let Err(left) = self.add(name, &old, &change.old).await {
                tracing::error!(%name, %left, "could not show the old volume again; it is tried again");
            }
            return Err(error);
        }
        Ok(change.wanted)
    }

    async fn delete(
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

/// Machines see a disk go with its volume.
impl Exported for VirtioScsiLuns {
    fn is_there(&self, name: &Name, object: &VirtioScsiLun) -> bool {
        self.luns.is_there(Lun::of(object).group, name.id())
    }

    async fn make_again(&self, name: &Name, object: &VirtioScsiLun) -> Result<bool, Error> {
        let lun = Lun::of(object);
        match self.luns.show_again(lun.group, name.id()).await? {
            Some(is_back) => Ok(is_back),
            None => self.add(name, &lun, object).await.map(|()| true),
        }
    }
}

/// What an object that has passed the checks asks for.
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

/// The ID in a `target_name_ref`.
fn group_of(text: &str) -> Option<&str> {
    let id = match text.split_once('/') {
        None => text,
        Some(("volumes" | TARGETS | CONTROLLERS, id)) => id,
        Some(_) => return None,
    };
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

/// Whether a text names a target or a controller.
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
