//! NvmeCredential: DH-HMAC-CHAP keys of a remote controller, one set per host NQN of its paths. The initiator's
//! counterpart of NvmeHost, with the same fields, so that both ends are configured alike. A key belongs to a host and
//! a subsystem: the path gives the host NQN, its controller the subsystem.

use std::sync::Arc;
use std::time::Instant;

use spdk::Handle;
use spdk::bdev::nvme::{self, Keys};
use spdk::nvmf::nqn;

use super::nvme_remote_controller::{NvmeRemoteControllers, unreachable};
use crate::api::own::NvmeCredential;
use crate::api::storage::VolumeStats;
use crate::error::{Error, Violations};
use crate::interchange;
use crate::resource::{CallContext, Change, Claims, Collection, Kind, Name, Others, Stage};

/// The kind of NvmeCredential.
pub struct NvmeCredentials {
    spdk: Handle,
    controllers: Others<NvmeRemoteControllers>,
}

impl NvmeCredentials {
    /// Creates the kind for credentials of these controllers.
    pub fn new(spdk: Handle, controllers: Arc<Collection<NvmeRemoteControllers>>) -> Self {
        Self {
            spdk,
            controllers: Others::of(controllers),
        }
    }

    /// Installs the keys of `new` and removes those of `old` if its host differs. Atomic: both or neither.
    async fn exchange(
        &self,
        call: &CallContext,
        name: &Name,
        old: Option<&NvmeCredential>,
        new: Option<&NvmeCredential>,
    ) -> Result<(), Error> {
        let controller = name.parent_id().unwrap_or_default().to_owned();
        let old = old.map(|old| old.hostnqn.clone());
        let (host, keys, old) = match new {
            Some(new) => {
                let old = old.filter(|old| *old != new.hostnqn);
                (new.hostnqn.clone(), keys(new), old)
            }
            None => (old.unwrap_or_default(), Keys::default(), None),
        };
        let give_up = call.answer_by();
        let exchanged = self.spdk.call(async move |spdk| {
            let left = give_up.saturating_duration_since(Instant::now());
            nvme::set_keys(spdk, &controller, &host, &keys, old.as_deref(), left).await
        });
        exchanged.await?.map_err(unreachable)
    }
}

fn keys(object: &NvmeCredential) -> Keys {
    Keys {
        dhchap: object.dhchap_key.clone(),
        dhchap_ctrlr: object.dhchap_ctrlr_key.clone(),
    }
}

impl Kind for NvmeCredentials {
    type Object = NvmeCredential;

    /// Reconciled before paths connect.
    const STAGE: Stage = Stage::Base;

    fn check(&self, object: &NvmeCredential, violations: &mut Violations) {
        if let Err(reason) = nqn::check(&object.hostnqn) {
            violations.add("hostnqn", reason);
        }
        for (field, key) in [
            ("dhchap_key", &object.dhchap_key),
            ("dhchap_ctrlr_key", &object.dhchap_ctrlr_key),
        ] {
            if !key.is_empty()
                && let Err(reason) = interchange::check_dhchap(key)
            {
                violations.add(field, reason);
            }
        }
    }

    fn claims(&self, name: &Name, object: &NvmeCredential) -> Claims {
        let controller = name.parent_id().unwrap_or_default();
        let claims = Claims::new().owns(format!(
            "keys of {} for nvmeRemoteControllers/{controller}",
            object.hostnqn
        ));
        // Exclusive: no path of the controller is created or deleted during the change.
        match name.parent() {
            Some(parent) => claims.alters(parent),
            None => claims,
        }
    }

    async fn ensure(
        &self,
        call: &CallContext,
        name: &Name,
        object: NvmeCredential,
    ) -> Result<NvmeCredential, Error> {
        self.exchange(call, name, None, Some(&object)).await?;
        Ok(object)
    }

    async fn update(
        &self,
        call: &CallContext,
        name: &Name,
        change: Change<NvmeCredential>,
    ) -> Result<NvmeCredential, Error> {
        let (old, new) = (Some(&change.old), Some(&change.wanted));
        self.exchange(call, name, old, new).await?;
        Ok(change.wanted)
    }

    /// The keys of the other host, if the update was to serve another. Those of the object's are set again.
    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<NvmeCredential>,
    ) -> Result<(), Error> {
        match back.old.hostnqn == back.wanted.hostnqn {
            true => Ok(()),
            false => self.remove(call, name, &back.old).await,
        }
    }

    async fn remove(
        &self,
        call: &CallContext,
        name: &Name,
        object: &NvmeCredential,
    ) -> Result<(), Error> {
        self.exchange(call, name, Some(object), None).await
    }

    /// Returns the stats of the controller: a key has no I/O of its own.
    async fn stats(&self, name: &Name, _: &NvmeCredential) -> Result<VolumeStats, Error> {
        let parent = name.parent().ok_or_else(|| Error::not_found(name))?;
        let controller = self.controllers.object(&parent);
        let controller = controller.ok_or_else(|| Error::not_found(&parent))?;
        let name = self
            .controllers
            .meta()
            .name(None, name.parent_id().unwrap_or_default());
        self.controllers.kind().stats(&name, &controller).await
    }

    fn hide_secrets(object: &mut NvmeCredential) {
        object.dhchap_key.clear();
        object.dhchap_ctrlr_key.clear();
    }
}
