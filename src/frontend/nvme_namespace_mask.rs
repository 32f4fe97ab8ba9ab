//! NvmeNamespaceMask: the hosts that may see a namespace.
//!
//! A mask belongs to the name of its namespace and not to the namespace: it can be created first, so that no other host
//! sees a new namespace for a moment, and it remains when the namespace is deleted, so that the namespace need not be
//! shown to all hosts before that.

use std::collections::BTreeSet;
use std::sync::Arc;

use spdk::Handle;
use spdk::nvmf::namespace;
use uuid::Uuid;

use super::is_gone;
use super::nvme_namespace::{NvmeNamespaces, check_name};
use super::nvme_subsystem::{NvmeSubsystems, Parent, check_nqn};
use crate::api::own::NvmeNamespaceMask;
use crate::api::storage::VolumeStats;
use crate::error::{Error, Violations};
use crate::resource::{
    CallContext, Change, Claims, Collection, Key, Kind, Name, Others, Registry, Shared, Stage,
    Unusable, id,
};

/// Maximum number of hosts of a mask. SPDK searches the list of a namespace for each of its hosts, one by one, while the
/// subsystem is paused.
const MAX_HOSTS: usize = 1000;

/// The kind of NvmeNamespaceMask.
pub struct NvmeNamespaceMasks {
    spdk: Handle,
    subsystems: Others<NvmeSubsystems>,
    namespaces: Others<NvmeNamespaces>,
    shared: Arc<Shared>,
}

impl NvmeNamespaceMasks {
    /// Creates the kind for masks of these namespaces of these subsystems.
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
        }
    }

    fn nqn(&self, name: &Name) -> Result<String, Error> {
        Ok(Parent::of(&self.subsystems, &self.shared.registry, name)?.nqn)
    }

    /// Sets the hosts that may see the namespace. A mask that is `kept` is that of the namespace from now on also where the
    /// subsystem cannot be paused: its namespace is never added without it.
    async fn mask(&self, name: &Name, object: &NvmeNamespaceMask, kept: bool) -> Result<(), Error> {
        let nqn = self.nqn(name)?;
        let (of, hosts) = (object.namespace.clone(), hosts_of(object));
        let masked = self.spdk.call(async move |spdk| {
            if kept {
                namespace::note_mask(spdk, &nqn, &of, Some(hosts.clone()));
            }
            namespace::mask(spdk, &nqn, &of, Some(hosts)).await
        });
        Ok(masked.await??)
    }
}

impl Kind for NvmeNamespaceMasks {
    type Object = NvmeNamespaceMask;

    /// Reconciled before the namespaces of the subsystem are added.
    const STAGE: Stage = Stage::Export;

    fn check(&self, object: &NvmeNamespaceMask, violations: &mut Violations) {
        let number = object.hostnqns.len();
        if number > MAX_HOSTS {
            violations.add("hostnqns", format!("{number} hosts: at most {MAX_HOSTS}"));
            return;
        }
        // The first bad one is enough: an error has room for few.
        let mut of_hosts = object.hostnqns.iter().map(|hostnqn| {
            let mut found = Violations::default();
            check_nqn("hostnqns", hostnqn, &mut found);
            found
        });
        if let Some(found) = of_hosts.find(|found| found.iter().next().is_some()) {
            violations.extend_new(found);
        }
    }

    fn claims(&self, name: &Name, object: &NvmeNamespaceMask) -> Claims {
        if check_parent(name, object).is_err() {
            return Claims::new();
        }
        // The namespace does not change meanwhile. It is not in use by its mask, and can be deleted first.
        Claims::new()
            .owns(key_of(&object.namespace))
            .alters(object.namespace.as_str())
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: NvmeNamespaceMask,
    ) -> Result<NvmeNamespaceMask, Error> {
        check_parent(name, &object)?;
        let is_known = !object.name.is_empty();
        self.mask(name, &object, is_known).await?;
        Ok(object)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<NvmeNamespaceMask>,
    ) -> Result<NvmeNamespaceMask, Error> {
        if change.fields.has("namespace") {
            return Err(Error::immutable("namespace"));
        }
        if hosts_of(&change.old) != hosts_of(&change.wanted) {
            self.mask(name, &change.wanted, false).await?;
        }
        Ok(change.wanted)
    }

    /// Nothing: the mask of either is that of one namespace, and is ensured.
    async fn withdraw(
        &self,
        _: &CallContext,
        _: &Name,
        _: &Change<NvmeNamespaceMask>,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        object: &NvmeNamespaceMask,
    ) -> Result<(), Error> {
        let (nqn, of) = (self.nqn(name)?, object.namespace.clone());
        let removed =
            self.spdk.call(
                async move |spdk| match namespace::mask(spdk, &nqn, &of, None).await {
                    Err(error) if is_gone(&error) => {
                        namespace::note_mask(spdk, &nqn, &of, None);
                        Ok(())
                    }
                    removed => removed,
                },
            );
        Ok(removed.await??)
    }

    /// Returns the stats of the namespace; zeros while it is not there.
    async fn stats(&self, _: &Name, object: &NvmeNamespaceMask) -> Result<VolumeStats, Error> {
        match self.namespaces.stats(&object.namespace).await {
            Err(Error::NotFound { .. }) => Ok(VolumeStats::default()),
            stats => stats,
        }
    }
}

/// Checks that the namespace is one of the mask's own subsystem.
fn check_parent(name: &Name, object: &NvmeNamespaceMask) -> Result<(), Error> {
    let subsystem = object.namespace.rsplitn(3, '/').last();
    if name.parent().as_ref().map(Key::as_str) == subsystem {
        return Ok(());
    }
    let what = format!("{} is a namespace of another subsystem", object.namespace);
    Err(Error::invalid("namespace", what))
}

/// Checks that a namespace can have this name: it may not exist yet.
pub(crate) fn check_namespace(name: &str) -> Result<(), String> {
    check_name(name).and_then(|()| check_id(name))
}

fn check_id(namespace: &str) -> Result<(), String> {
    let id = namespace.rsplit('/').next().unwrap_or_default();
    // IDs that the server generates.
    let is_uuid = Uuid::try_parse(id).is_ok_and(|uuid| uuid.to_string() == id);
    match is_uuid {
        true => Ok(()),
        false => id::check(id).map_err(|reason| format!("{namespace:?}: {reason}")),
    }
}

fn hosts_of(object: &NvmeNamespaceMask) -> BTreeSet<String> {
    object.hostnqns.iter().cloned().collect()
}

fn key_of(namespace: &str) -> Key {
    Key::from(format!("mask of/{namespace}"))
}

/// Returns the mask of a namespace.
pub(super) fn of(registry: &Registry, namespace: &Key) -> Option<Name> {
    registry.owner(&key_of(namespace.as_str()))
}

/// Returns a stored mask of a namespace of this subsystem that cannot be used.
pub(super) fn unusable(records: &Unusable, subsystem: &Key) -> Option<Key> {
    records.first_under(&format!("{}/nvmeNamespaceMasks/", subsystem.as_str()))
}
