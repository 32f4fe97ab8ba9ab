//! Parts of subsystems (namespaces, listeners, hosts) that somebody has removed by SPDK's own commands, behind the
//! API's back: hosts no longer have them, and their objects say so.

use std::collections::HashMap;
use std::sync::Arc;

use spdk::nvmf::{Address, host, listener, namespace};
use spdk::{CallError, Handle, Spdk};

use super::walk::Walk;
use super::{Health, Monitor};
use crate::resource::{Collection, Kind, Name};

/// How many parts one step of the reactor looks up.
const AT_ONCE: usize = 64;

/// So many looks in a row must miss a part: a change takes one out for a moment.
const PATIENCE: u32 = 2;

/// What SPDK should have for an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    /// The subsystem.
    pub nqn: String,
    /// The part of it.
    pub what: What,
}

/// See [`Part`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// By its ID.
    Namespace(u32),
    /// By where it listens.
    Listener(Address),
    /// By its NQN.
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
    /// The part that SPDK should have; `None` while it is known to have none.
    fn part(&self, name: &Name, object: &Self::Object) -> Option<Part>;
}

/// Looks after the parts of all objects of a kind.
pub(crate) struct Parts<K: Parted> {
    spdk: Handle,
    objects: Arc<Collection<K>>,
    health: Arc<Health>,
    /// For how many looks each has been missing.
    missing: HashMap<Name, u32>,
    walk: Walk,
}

impl<K: Parted> Parts<K> {
    /// Parts of these objects.
    pub(crate) fn new(spdk: Handle, objects: Arc<Collection<K>>, health: Arc<Health>) -> Self {
        Self {
            spdk,
            objects,
            health,
            missing: HashMap::new(),
            walk: Walk::default(),
        }
    }

    /// Those that are missing, and the next ones.
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

    /// The part that SPDK should have of this name now.
    fn now(&self, name: &Name) -> Option<Part> {
        let object = self.objects.object(name.key())?;
        self.objects.kind().part(name, &object)
    }

    fn found(&mut self, name: &Name, is_there: bool) {
        let key = name.key();
        if is_there {
            self.missing.remove(name);
            if self.health.note(key, None) {
                tracing::info!(object = %key, "SPDK has it again");
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
        // Deleted, or on a volume that has gone.
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
            // It may have been changed or deleted meanwhile.
            if self.now(name).as_ref() == Some(part) {
                self.found(name, false);
            }
        }
        Ok(())
    }
}
