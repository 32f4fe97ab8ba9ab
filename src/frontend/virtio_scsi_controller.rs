//! VirtioScsiController: the vhost-user socket of a virtio-scsi device of a virtual machine, with the LUNs of the
//! controller's ID; see [`virtio_scsi`](super::virtio_scsi).

use std::path::PathBuf;
use std::sync::Arc;

use spdk::vhost::scsi;
use spdk::{Handle, Spdk, errno};

use super::virtio_scsi::Luns;
use super::{pcie, socket_key};
use crate::api::storage::{PciEndpoint, VirtioScsiController, VolumeStats};
use crate::error::{Error, Violations};
use crate::kvm::{Model, Pluggable};
use crate::middleend::limits;
use crate::resource::{CallContext, Change, Claims, Kind, Name, Stage};

/// Error message: why a controller has no limits.
const NO_LIMITS: &str =
    "SPDK limits volumes, not controllers: make a QosVolume of each volume instead";

/// The kind of VirtioScsiController.
pub struct VirtioScsiControllers {
    spdk: Handle,
    luns: Arc<Luns>,
}

impl VirtioScsiControllers {
    /// Creates the kind for controllers of this SPDK, which show these LUNs.
    pub fn new(spdk: Handle, luns: Arc<Luns>) -> Self {
        Self { spdk, luns }
    }
}

impl Kind for VirtioScsiControllers {
    type Object = VirtioScsiController;

    const STAGE: Stage = Stage::Door;

    fn check(&self, object: &VirtioScsiController, violations: &mut Violations) {
        if let Some(endpoint) = &object.pcie_id {
            pcie::check_numbers("pcie_id", endpoint, violations);
        }
        if let Some(limit) = &object.min_limit {
            limits::check_no_minimum(limit, "min_limit", violations);
        }
        if let Some(limit) = &object.max_limit {
            limits::refuse(limit, "max_limit", NO_LIMITS, violations);
        }
    }

    fn claims(&self, name: &Name, _: &VirtioScsiController) -> Claims {
        Claims::new().owns(socket_key(name.id()))
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: VirtioScsiController,
    ) -> Result<VirtioScsiController, Error> {
        let is_known = !object.name.is_empty();
        if is_known && self.luns.is_shown(name.id()) {
            return Ok(object);
        }
        let id = name.id().to_owned();
        let created = self
            .spdk
            .call(move |spdk| async move { scsi::create(spdk, &id).await });
        match created.await? {
            // An earlier attempt could not remove it again, or its removal was cut off.
            Err(error) if is_known && error.errno.0 == errno::EEXIST => {}
            created => created?,
        }
        // After a restart, a LUN whose volume is missing is shown once the volume is back.
        if let Err(error) = self.luns.attach(name.id(), is_known).await {
            return match self.remove_from_spdk(name).await {
                Ok(()) => Err(error),
                Err(_) => Err(error.unsettled()),
            };
        }
        Ok(object)
    }

    /// Only stores the fields. Without KVM mode the PCIe numbers are informative, since the virtual machine places the
    /// device; in KVM mode they cannot change.
    async fn update(
        &self,
        _: &CallContext,
        _: &Name,
        change: Change<VirtioScsiController>,
    ) -> Result<VirtioScsiController, Error> {
        Ok(change.wanted)
    }

    /// An update changes nothing in SPDK.
    async fn withdraw(
        &self,
        _: &CallContext,
        _: &Name,
        _: &Change<VirtioScsiController>,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        _: &VirtioScsiController,
    ) -> Result<(), Error> {
        let removed = self.remove_from_spdk(name).await;
        // After an unsettled error the controller may be gone: what stays of it is adopted.
        if removed.as_ref().err().is_none_or(Error::is_unsettled) {
            self.luns.detach(name.id());
        }
        removed
    }

    async fn stats(&self, name: &Name, _: &VirtioScsiController) -> Result<VolumeStats, Error> {
        self.luns.stats(name.id()).await
    }
}

impl Pluggable for VirtioScsiControllers {
    const MODEL: Model = Model::VirtioScsi;
    const FIELD: &'static str = "pcie_id";

    fn endpoint(object: &VirtioScsiController) -> Option<&PciEndpoint> {
        object.pcie_id.as_ref()
    }

    fn socket(name: &Name) -> PathBuf {
        name.id().into()
    }
}

impl VirtioScsiControllers {
    async fn remove_from_spdk(&self, name: &Name) -> Result<(), Error> {
        let id = name.id().to_owned();
        Ok(self
            .spdk
            .call(move |spdk| async move { remove(spdk, &id).await })
            .await??)
    }
}

/// Deletes the controller. Idempotent.
async fn remove(spdk: Spdk, id: &str) -> Result<(), spdk::Error> {
    match scsi::delete(spdk, id).await {
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        result => result,
    }
}
