//! VirtioScsiTarget: a group of LUNs. The controller of the same ID shows them; see
//! [`virtio_scsi`](super::virtio_scsi).

use std::sync::Arc;

use spdk::{Handle, vhost};

use super::virtio_scsi::{Luns, MAX_LUNS};
use crate::api::storage::{VirtioScsiTarget, VolumeStats};
use crate::error::{Error, Violations};
use crate::resource::{CallContext, Change, Claims, Kind, Name, Stage};

/// The kind of VirtioScsiTarget.
pub struct VirtioScsiTargets {
    spdk: Handle,
    luns: Arc<Luns>,
}

impl VirtioScsiTargets {
    /// Creates the kind for targets of these LUNs.
    pub fn new(spdk: Handle, luns: Arc<Luns>) -> Self {
        Self { spdk, luns }
    }

    /// Checks that the target is not given fewer LUNs than it has.
    fn check_room(&self, name: &Name, target: &VirtioScsiTarget) -> Result<(), Error> {
        let (there, most) = (self.luns.count(name.id()), most(target));
        if there <= most {
            return Ok(());
        }
        Err(Error::failed_precondition(
            name,
            format!("max_luns: {most} is less than the {there} LUNs that {name} has"),
        ))
    }
}

impl Kind for VirtioScsiTargets {
    type Object = VirtioScsiTarget;

    const STAGE: Stage = Stage::Export;

    fn check(&self, object: &VirtioScsiTarget, violations: &mut Violations) {
        if usize::try_from(object.max_luns).is_ok_and(|luns| luns <= MAX_LUNS) {
            return;
        }
        violations.add(
            "max_luns",
            format!("{}: 1 to {MAX_LUNS}, or 0 for {MAX_LUNS}", object.max_luns),
        );
    }

    fn claims(&self, _: &Name, _: &VirtioScsiTarget) -> Claims {
        Claims::new()
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        wanted: VirtioScsiTarget,
    ) -> Result<VirtioScsiTarget, Error> {
        self.check_room(name, &wanted)?;
        // Fails without vhost: no virtual machine could ever see the LUNs.
        self.spdk
            .call(|spdk| async move { vhost::check_available(spdk) })
            .await??;
        Ok(wanted)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<VirtioScsiTarget>,
    ) -> Result<VirtioScsiTarget, Error> {
        self.check_room(name, &change.wanted)?;
        Ok(change.wanted)
    }

    /// SPDK has nothing of a target.
    async fn withdraw(
        &self,
        _: &CallContext,
        _: &Name,
        _: &Change<VirtioScsiTarget>,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(&self, _: &CallContext, _: &Name, _: &VirtioScsiTarget) -> Result<(), Error> {
        Ok(())
    }

    async fn stats(&self, name: &Name, _: &VirtioScsiTarget) -> Result<VolumeStats, Error> {
        self.luns.stats(name.id()).await
    }
}

/// Returns the maximum number of LUNs of a target.
pub(super) fn most(target: &VirtioScsiTarget) -> usize {
    let asked = usize::try_from(target.max_luns)
        .ok()
        .filter(|luns| *luns > 0);
    asked.unwrap_or(MAX_LUNS)
}
