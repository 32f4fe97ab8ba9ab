//! What has befallen the devices under volumes. A device fails without anybody having asked for
//! anything: paths, files and exported volumes are looked after, and what cannot be used for now is
//! noted here. Whoever answers a state reads it from here, without crossing into SPDK.
//!
//! ```text
//!   fine --a look finds a trouble--> noted, a warning --a look finds none--> fine again, a line
//! ```

mod exports;
mod failures;
mod files;
mod hosts;
mod parts;
mod paths;
mod presences;
mod refusals;
mod walk;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use spdk::CallError;
use tokio::time::MissedTickBehavior;

use crate::resource::{Key, Name, Registry, Shared};

pub(crate) use exports::Exports;
pub(crate) use failures::Failures;
pub(crate) use files::Files;
pub(crate) use hosts::Hosts;
pub(crate) use parts::{Part, Parted, Parts, What};
pub(crate) use paths::{Paths, path_key};
pub(crate) use presences::{Presences, Replaced};
pub(crate) use refusals::Refusals;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// The troubles that are known.
#[derive(Debug)]
pub struct Health {
    registry: Arc<Registry>,
    troubles: RwLock<HashMap<Key, String>>,
    /// Bdevs whose devices answer I/O with errors.
    failing: RwLock<HashMap<Key, String>>,
}

impl Health {
    /// None yet. `registry` knows what stands on what.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            registry,
            troubles: RwLock::default(),
            failing: RwLock::default(),
        })
    }

    /// What is wrong with what this key stands for.
    pub fn trouble(&self, key: &Key) -> Option<String> {
        let trouble = self.troubles.read().get(key).cloned();
        trouble.or_else(|| self.failing.read().get(key).cloned())
    }

    /// What is wrong with `name`, with what it has for itself, or with something that it stands on.
    pub(crate) fn trouble_of(&self, name: &Name) -> Option<String> {
        if self.is_fine() {
            return None;
        }
        let bdev = Key::bdev(name.id());
        let own = self.registry.owner(&bdev);
        let own = own.filter(|owner| owner == name).map(|_| bdev);
        self.trouble(name.key())
            .or_else(|| own.and_then(|bdev| self.trouble(&bdev)))
            .or_else(|| self.trouble_beneath(name))
    }

    /// Whether nothing is wrong with anything.
    pub(crate) fn is_fine(&self) -> bool {
        self.troubles.read().is_empty() && self.failing.read().is_empty()
    }

    /// What is wrong with something that `name` stands on, down to the device.
    pub fn trouble_beneath(&self, name: &Name) -> Option<String> {
        if self.is_fine() {
            return None;
        }
        let beneath = self.registry.beneath(name);
        beneath.iter().find_map(|key| self.trouble(key))
    }

    /// Notes that the device of a bdev fails I/O, or no longer does.
    pub(crate) fn note_failing(&self, bdev: &Key, trouble: Option<String>) {
        let mut failing = self.failing.write();
        match trouble {
            Some(trouble) => failing.insert(bdev.clone(), trouble),
            None => failing.remove(bdev),
        };
    }

    /// Notes what a look has found; whether that is news.
    pub(crate) fn note(&self, key: &Key, trouble: Option<String>) -> bool {
        match trouble {
            Some(trouble) => {
                let mut troubles = self.troubles.write();
                troubles.insert(key.clone(), trouble).is_none()
            }
            // The common case takes no exclusive lock.
            None if !self.troubles.read().contains_key(key) => false,
            None => self.troubles.write().remove(key).is_some(),
        }
    }
}

/// Something that is looked after.
pub(crate) trait Look: Send + 'static {
    /// Looks once. Holds no reactor for longer than a step of configuration.
    fn look(&mut self) -> impl Future<Output = Result<(), CallError>> + Send;
}

/// Looks again and again, until the server stops: what goes then is no news.
pub(crate) async fn look_after(mut what: impl Look, shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if shared.is_stopping() || what.look().await == Err(CallError::Stopped) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Uses;

    #[test]
    fn a_trouble_is_one_of_all_that_stands_on_it() {
        let registry = Arc::new(Registry::default());
        let health = Health::new(Arc::clone(&registry));
        let hold = |key: &str, uses: Uses| {
            let name = Name::new(key.into(), None);
            let uses = uses.owns(key);
            registry.reserve(&name, &uses).unwrap().settle(uses);
            name
        };
        let base = Key::bdev("base");
        let volume = hold("aioVolumes/base", Uses::new().owns(base.clone()));
        let upper = Uses::new().owns(Key::bdev("upper")).takes(base.clone());
        hold("encryptedVolumes/upper", upper);
        let taken = hold("namespaces/n", Uses::new().takes(Key::bdev("upper")));
        let other = hold("namespaces/o", Uses::new().takes(Key::bdev("other")));

        assert!(health.note(&base, Some("cut off".into())));
        assert!(!health.note(&base, Some("cut off".into())), "no news");
        assert_eq!(health.trouble_beneath(&taken), Some("cut off".into()));
        assert_eq!(health.trouble_beneath(&other), None);
        assert!(health.note(&base, None));
        assert_eq!(health.trouble_beneath(&taken), None);

        health.note_failing(&base, Some("I/O fails".into()));
        assert!(!health.note(&base, None), "another look finds nothing");
        let fails = Some("I/O fails".into());
        assert_eq!(health.trouble_of(&volume), fails);
        assert_eq!(health.trouble_of(&taken), fails);
        assert_eq!(health.trouble_of(&other), None);
        health.note_failing(&base, None);
        assert_eq!(health.trouble_of(&volume), None);
    }
}
