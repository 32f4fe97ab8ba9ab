//! Monitors the parts of subsystems (namespaces, listeners, hosts) for removal through SPDK's own commands: the object
//! is then marked with a fault.

use std::collections::HashMap;
use std::sync::Arc;

use spdk::nvmf::{Address, host, listener, namespace};
use spdk::{CallError, Handle, Spdk};

use super::walk::Walk;
use super::{Health, Monitor};
use crate::resource::{Collection, Kind, Name};

/// Parts looked up in one step on the reactor.
const AT_ONCE: usize = 64;

/// Consecutive checks that must miss a part before it is reported: an update removes a part for a moment.
const PATIENCE: u32 = 2;

/// What SPDK should have for an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    /// NQN of the subsystem.
    pub nqn: String,
    /// The part of the subsystem.
    pub what: What,
}

/// Identity of a [`Part`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// A namespace, by its NSID.
    Namespace(u32),
    /// A listener, by its address.
    Listener(Address),
    /// A host, by its NQN.
    Host(String),
}

impl Part {
    fn is_there(&self, spdk: Spdk) -> bool {
        match &self.what {
            What::Namespace(nsid) => namespace::exists(spdk, &self.nqn, *nsid),
            What::Listener(address) => {
                listener::list(spdk, &self.nqn).is_ok_and(|list| list.contains(address))
            }
            What::Host(nqn) => host::is_allowed(spdk, &self.nqn, nqn).unwrap_or(false),
        }
    }
}

/// A kind whose objects are parts of subsystems.
pub(crate) trait Parted: Kind {
    /// Returns the part that SPDK should have; `None` while the object is known to have none.
    fn part(&self, name: &Name, object: &Self::Object) -> Option<Part>;
}

/// Monitor of the parts of all objects of a kind.
pub(crate) struct Parts<K: Parted> {
    spdk: Handle,
    objects: Arc<Collection<K>>,
    health: Arc<Health>,
    /// Number of consecutive checks that have missed the part.
    missing: HashMap<Name, u32>,
    walk: Walk,
}

impl<K: Parted> Parts<K> {
    /// Creates the monitor for the parts of these objects.
    pub(crate) fn new(spdk: Handle, objects: Arc<Collection<K>>, health: Arc<Health>) -> Self {
        Self {
            spdk,
            objects,
            health,
            missing: HashMap::new(),
            walk: Walk::default(),
        }
    }

    /// Returns the missing parts, and the next slice of the others.
    fn parts(&mut self) -> Vec<(Name, Part)> {
        let (some, after) = self.objects.slice(&self.walk.next());
        self.walk.go_on(after);
        let part = |(name, object): (Name, K::Object)| {
            let part = self.objects.kind().part(&name, &object)?;
            Some((name, part))
        };
        let others = some.into_iter().filter_map(part);
        let others = others.filter(|(name, _)| !self.missing.contains_key(name));
        let missing = self.missing.keys();
        let missing = missing.filter_map(|name| Some((name.clone(), self.now(name)?)));
        missing.chain(others).collect()
    }

    /// Returns the part that SPDK should have now for this name.
    fn now(&self, name: &Name) -> Option<Part> {
        let object = self.objects.object(name.key())?;
        self.objects.kind().part(name, &object)
    }

    fn found(&mut self, name: &Name, is_there: bool) {
        let key = name.key();
        if is_there {
            self.missing.remove(name);
            if self.health.note(key, None) {
                tracing::info!(object = %key, "object is back in SPDK");
            }
            return;
        }
        let looks = self.missing.entry(name.clone()).or_default();
        *looks = looks.saturating_add(1);
        let fault = "SPDK has it no longer: it was removed by SPDK's own commands";
        if *looks >= PATIENCE && self.health.note(key, Some(fault.to_owned())) {
            tracing::warn!(object = %key, "{fault}; delete it, or make it again");
        }
    }
}

impl<K: Parted> Monitor for Parts<K> {
    async fn check(&mut self) -> Result<(), CallError> {
        // The object was deleted, or its volume is gone.
        let missing = self.missing.keys();
        let gone = missing.filter(|name| self.now(name).is_none());
        for name in gone.cloned().collect::<Vec<_>>() {
            self.missing.remove(&name);
            self.health.note(name.key(), None);
        }
        let parts = self.parts();
        let mut absent = Vec::new();
        for some in parts.chunks(AT_ONCE) {
            let asked: Vec<Part> = some.iter().map(|(_, part)| part.clone()).collect();
            let there = self.spdk.call(async move |spdk| {
                let there = asked.iter().map(|part| part.is_there(spdk));
                there.collect::<Vec<_>>()
            });
            for ((name, part), is_there) in some.iter().zip(there.await?) {
                if is_there {
                    self.found(name, true);
                } else {
                    absent.push((name, part));
                }
            }
        }
        for (name, part) in absent {
            // Race: the object may have been updated or deleted since the lookup.
            if self.now(name).as_ref() == Some(part) {
                self.found(name, false);
            }
        }
        Ok(())
    }
}
