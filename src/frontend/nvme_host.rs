//! NvmeHost: a host that a subsystem admits, with its keys. See [`admission`](super::admission).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use spdk::Handle;
use spdk::nvmf::View;
use spdk::nvmf::host::{Keys, OldKeys};

use super::admission::{Hosts, admitted, hostnqn_of};
use super::host_recipe::{FirstHost, Recipe, open};
use super::nvme_namespace::{NvmeNamespaces, check_name, nsid_of};
use super::nvme_subsystem::{NvmeSubsystems, Parent, check_nqn};
use super::old_keys::{self, HeldKeys};
use super::subsystem_stats;
use crate::api::own::NvmeHost;
use crate::api::storage::VolumeStats;
use crate::error::{Error, Violations};
use crate::health::{Part, Parted, What};
use crate::interchange;
use crate::resource::{
    CallContext, Change, Claims, Collection, Key, Kind, Name, Others, Shared, Stage,
};

/// The kind of NvmeHost.
pub struct NvmeHosts {
    spdk: Handle,
    subsystems: Others<NvmeSubsystems>,
    namespaces: Others<NvmeNamespaces>,
    shared: Arc<Shared>,
    old_keys: HeldKeys,
}

impl NvmeHosts {
    /// Creates the kind for hosts of these subsystems, which see these namespaces.
    pub fn new(
        spdk: Handle,
        subsystems: Arc<Collection<NvmeSubsystems>>,
        namespaces: Arc<Collection<NvmeNamespaces>>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            spdk,
            subsystems: Others::of(subsystems),
            namespaces: Others::of(namespaces),
            shared,
            old_keys: HeldKeys::default(),
        }
    }

    /// Returns the previous keys that are still accepted.
    pub(super) fn old_keys(&self) -> &HeldKeys {
        &self.old_keys
    }

    /// Returns the subsystem that admits the host.
    pub(super) fn parent(&self, name: &Name) -> Result<Parent, Error> {
        Parent::of(&self.subsystems, &self.shared.registry, name)
    }

    /// Returns the namespaces that the host may see.
    fn view(&self, name: &Name, object: &NvmeHost) -> Result<View, Error> {
        if object.namespaces.is_empty() {
            return Ok(View::All);
        }
        let mut nsids = BTreeSet::new();
        for of in &object.namespaces {
            let namespace = self.namespaces.meta().parse("namespaces", of)?;
            if namespace.parent() != name.parent() {
                let what = format!("{of} is a namespace of another subsystem");
                return Err(Error::invalid("namespaces", what));
            }
            let found = self.namespaces.object(namespace.key());
            nsids.insert(nsid_of(&found.ok_or_else(|| Error::not_found(&namespace))?));
        }
        Ok(View::Only(nsids))
    }

    fn recipe(
        &self,
        name: &Name,
        object: &NvmeHost,
        first: FirstHost,
        old: Option<OldKeys>,
    ) -> Result<Recipe, Error> {
        let view = self.view(name, object)?;
        Ok(Recipe {
            host: object.hostnqn.clone(),
            keys: Keys {
                psk: object.psk.clone(),
                dhchap: object.dhchap_key.clone(),
                dhchap_ctrlr: object.dhchap_ctrlr_key.clone(),
                old,
            },
            view,
            first,
        })
    }

    /// Returns the other admitted hosts of the subsystem.
    fn others(&self, name: &Name) -> Hosts {
        let subsystem = name.parent_id().unwrap_or_default();
        Hosts::beside(&self.shared.registry, subsystem, Some(name))
    }
}

impl Kind for NvmeHosts {
    type Object = NvmeHost;

    /// Reconciled before the subsystem's controllers listen.
    const STAGE: Stage = Stage::Part;

    fn check(&self, object: &NvmeHost, violations: &mut Violations) {
        check_nqn("hostnqn", &object.hostnqn, violations);
        let [psk, dhchap] = [interchange::check_psk, interchange::check_dhchap];
        for (field, key, check) in [
            ("psk", &object.psk, psk as fn(&[u8]) -> Result<(), String>),
            ("dhchap_key", &object.dhchap_key, dhchap),
            ("dhchap_ctrlr_key", &object.dhchap_ctrlr_key, dhchap),
        ] {
            if !key.is_empty()
                && let Err(reason) = check(key)
            {
                violations.add(field, reason);
            }
        }
        for namespace in &object.namespaces {
            if let Err(reason) = check_name(namespace) {
                violations.add("namespaces", reason);
            }
        }
        if let Some(until) = &object.old_keys_until
            && old_keys::time_of(until).is_none()
        {
            violations.add("old_keys_until", "is no time of the years 1970 to 9999");
        }
        if object.dhchap_key.is_empty() && !object.dhchap_ctrlr_key.is_empty() {
            violations.add(
                "dhchap_key",
                "is required where dhchap_ctrlr_key is set: the host authenticates first",
            );
        }
    }

    fn claims(&self, name: &Name, object: &NvmeHost) -> Claims {
        let has_psk = !object.psk.is_empty();
        let subsystem = name.parent_id().unwrap_or_default();
        let claims = admitted(Claims::new(), subsystem, has_psk)
            .owns(hostnqn_of(subsystem, &object.hostnqn));
        // A namespace that a host sees cannot be deleted. The list holds typed names, which are keys.
        let claims = (object.namespaces.iter())
            .filter(|of| check_name(of).is_ok())
            .map(|of| Key::from(of.as_str()))
            .fold(claims, Claims::needs);
        // Exclusive: admission decides whether controllers listen with TLS, so none may be created or deleted
        // meanwhile.
        match name.parent() {
            Some(parent) => claims.alters(parent),
            None => claims,
        }
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: NvmeHost,
    ) -> Result<NvmeHost, Error> {
        let is_known = !object.name.is_empty();
        let parent = self.parent(name)?;
        if !is_known {
            if object.old_keys_until.is_some() {
                let what = "is for an update: a new host has no keys of before";
                return Err(Error::invalid("old_keys_until", what));
            }
            check_identity(&object, &parent)?;
            let others = self.others(name);
            others.check_psk(name, !object.psk.is_empty())?;
            if others.is_empty() {
                let what = format!("{} admits any host until it has its first", parent.name);
                parent.check_no_controllers(&self.shared.registry, name, &what)?;
            }
        }
        let old = self.old_keys.of(name.key(), SystemTime::now());
        let recipe = self.recipe(name, &object, parent.first, old)?;
        let nqn = parent.nqn;
        let made = self
            .spdk
            .call(move |spdk| async move { recipe.ensure(spdk, &nqn, is_known).await });
        made.await??;
        Ok(object)
    }

    fn kept(&self, name: &Name, _: &NvmeHost) -> Vec<u8> {
        self.old_keys.kept(name.key(), SystemTime::now())
    }

    fn restore(&self, name: &Name, object: &NvmeHost, kept: &[u8]) {
        self.old_keys.restore(name.key(), object, kept);
    }

    /// Changed keys leave the host connected. A changed NQN admits another host instead.
    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        mut change: Change<NvmeHost>,
    ) -> Result<NvmeHost, Error> {
        let parent = self.parent(name)?;
        let now = SystemTime::now();
        let held = self.old_keys.of(name.key(), now);
        let old_keys = if change.is_undo {
            self.old_keys.before(name.key(), now)
        } else {
            let set = change.names("old_keys_until");
            let set = set.then_some(change.asked.old_keys_until.as_ref());
            old_keys::after(&change.old, &change.wanted, set, held.as_ref(), now)?
        };
        if !change.is_undo {
            check_identity(&change.wanted, &parent)?;
        }
        let has_psk = !change.wanted.psk.is_empty();
        if has_psk == change.old.psk.is_empty() {
            let others = self.others(name);
            others.check_psk(name, has_psk)?;
            let what = "psk: it decides whether the controllers of the subsystem speak TLS";
            parent.check_no_controllers(&self.shared.registry, name, what)?;
        }
        let (nqn, old, new) = (
            parent.nqn,
            self.recipe(name, &change.old, parent.first.clone(), held)?,
            self.recipe(name, &change.wanted, parent.first, old_keys.clone())?,
        );
        let changed = self
            .spdk
            .call(move |spdk| async move { new.replace(spdk, &nqn, &old).await });
        changed.await??;
        change.wanted.old_keys_until = old_keys.as_ref().map(|keys| keys.until.into());
        self.old_keys.set(name.key(), old_keys);
        Ok(change.wanted)
    }

    /// The other host, if the update was to admit another. Keys and view are ensured.
    async fn withdraw(
        &self,
        _: &CallContext,
        name: &Name,
        back: &Change<NvmeHost>,
    ) -> Result<(), Error> {
        if back.old.hostnqn == back.wanted.hostnqn {
            return Ok(());
        }
        let Parent { nqn, first, .. } = self.parent(name)?;
        let host = back.old.hostnqn.clone();
        let removed = self
            .spdk
            .call(async move |spdk| first.revoke(spdk, &nqn, &host).await);
        Ok(removed.await??)
    }

    async fn remove(&self, _: &CallContext, name: &Name, object: &NvmeHost) -> Result<(), Error> {
        let parent = self.parent(name)?;
        let is_last = self.others(name).is_empty();
        if is_last {
            let what = format!("{} admits any host once it has none", parent.name);
            parent.check_no_controllers(&self.shared.registry, name, &what)?;
        }
        let (nqn, host) = (parent.nqn, object.hostnqn.clone());
        let first = parent.first;
        let removed = self.spdk.call(async move |spdk| {
            first.revoke(spdk, &nqn, &host).await?;
            match is_last {
                true => open(spdk, &nqn).await,
                false => Ok(()),
            }
        });
        removed.await??;
        self.old_keys.forget(name.key());
        Ok(())
    }

    /// Returns the stats of the whole subsystem: SPDK counts per volume, not per host.
    async fn stats(&self, name: &Name, _: &NvmeHost) -> Result<VolumeStats, Error> {
        subsystem_stats(&self.spdk, self.parent(name)?.nqn).await
    }

    fn hide_secrets(object: &mut NvmeHost) {
        object.psk.clear();
        object.dhchap_key.clear();
        object.dhchap_ctrlr_key.clear();
    }
}

impl Parted for NvmeHosts {
    fn part(&self, name: &Name, object: &NvmeHost) -> Option<Part> {
        let nqn = self.parent(name).ok()?.nqn;
        let what = What::Host(object.hostnqn.clone());
        Some(Part { nqn, what })
    }
}

/// Checks that the NQNs fit into the TLS PSK identity, if the host has a pre-shared key.
fn check_identity(object: &NvmeHost, subsystem: &Parent) -> Result<(), Error> {
    if object.psk.is_empty() {
        return Ok(());
    }
    let checked = interchange::check_identity(&object.hostnqn, &subsystem.nqn);
    checked.map_err(|reason| Error::invalid("psk", reason))
}
