//! Monitors, and the faults that they have found. Devices fail on their own: paths, files and exported volumes are
//! checked periodically, and what is unusable is noted here. State is answered from here, without crossing into SPDK.
//!
//! ```text
//!   fine --a check finds a fault--> fault noted, logged --a check finds none--> fault cleared, logged
//! ```

mod exports;
mod failures;
mod hosts;
mod parts;
mod presences;
mod refusals;
mod walk;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use parking_lot::{Mutex, RwLock};
use spdk::CallError;
use tokio::time::MissedTickBehavior;

use crate::resource::{Key, Name, Shared};

pub(crate) use exports::Exports;
pub(crate) use failures::Failures;
pub(crate) use hosts::Hosts;
pub(crate) use parts::{Part, Parted, Parts, What};
pub(crate) use presences::{Presences, Replaced};
pub(crate) use refusals::Refusals;
pub(crate) use walk::Walk;

/// Interval of the checks.
const INTERVAL: Duration = Duration::from_millis(500);

/// Pause of a monitor whose check has panicked.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// A fault of a device or object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Description.
    pub what: String,
    /// When the fault was found. The description may have been updated since.
    pub since: SystemTime,
}

/// Faults by the key of what is faulty.
type Faults = HashMap<Key, Fault>;

/// The known faults.
pub struct Health {
    shared: Arc<Shared>,
    faults: RwLock<Faults>,
    /// Bdevs whose devices complete I/O with errors.
    failing: RwLock<Faults>,
    /// Keys of faults whose objects were not applied when they were noted: told once they are.
    untold: Mutex<HashSet<Key>>,
}

impl Health {
    /// Creates an empty set for these objects. A change of a fault is an event of the object that owns the key.
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            faults: RwLock::default(),
            failing: RwLock::default(),
            untold: Mutex::default(),
        })
    }

    /// Returns the fault noted under this key.
    pub fn fault(&self, key: &Key) -> Option<Fault> {
        let fault = self.faults.read().get(key).cloned();
        fault.or_else(|| self.failing.read().get(key).cloned())
    }

    /// Returns a fault of anything that `name` owns or depends on.
    pub(crate) fn fault_of(&self, name: &Name) -> Option<Fault> {
        if self.is_fine() {
            return None;
        }
        let own = self.shared.registry.owned(name);
        (own.iter().find_map(|key| self.fault(key))).or_else(|| self.fault_of_dependencies(name))
    }

    /// Returns whether there is no fault at all.
    pub(crate) fn is_fine(&self) -> bool {
        self.faults.read().is_empty() && self.failing.read().is_empty()
    }

    /// Returns a fault of anything that `name` depends on, down to the device.
    pub fn fault_of_dependencies(&self, name: &Name) -> Option<Fault> {
        if self.is_fine() {
            return None;
        }
        let keys = self.shared.registry.transitive_keys(name);
        keys.iter().find_map(|key| self.fault(key))
    }

    /// Notes that the device of a bdev fails I/O, or has recovered.
    pub(crate) fn note_failing(&self, bdev: &Key, fault: Option<String>) {
        let mut failing = self.failing.write();
        match fault {
            Some(what) => enter(&mut failing, bdev, what),
            None => failing.remove(bdev).is_some(),
        };
    }

    /// Returns the object that owns this key.
    pub(crate) fn object(&self, key: &Key) -> Option<Name> {
        self.shared.registry.owner(key)
    }

    /// Returns the known faults and their keys.
    pub(crate) fn faults(&self) -> Vec<(Key, Fault)> {
        let all = [self.faults.read().clone(), self.failing.read().clone()];
        all.into_iter().flatten().collect()
    }

    /// Notes the result of a check. Returns whether the state has changed; a change is an event of the owner too.
    pub(crate) fn note(&self, key: &Key, fault: Option<String>) -> bool {
        let reason = fault.clone().unwrap_or_default();
        let is_news = match fault {
            Some(what) => enter(&mut self.faults.write(), key, what),
            // The common case, no fault before or after, takes no exclusive lock.
            None if !self.faults.read().contains_key(key) => false,
            None => self.faults.write().remove(key).is_some(),
        };
        // Taken for faults alone: the common case has none.
        let was_untold = (is_news || !reason.is_empty()) && self.untold.lock().remove(key);
        if (is_news || was_untold)
            && let Some(object) = self.object(key)
        {
            let is_told = self.shared.conditions.tell_fault(object.key(), &reason);
            if !is_told && !reason.is_empty() {
                self.untold.lock().insert(key.clone());
            }
        }
        is_news
    }
}

/// Adds a fault, or updates the description of a known one. Returns whether the fault is new.
fn enter(faults: &mut Faults, key: &Key, what: String) -> bool {
    if let Some(known) = faults.get_mut(key) {
        known.what = what;
        return false;
    }
    let since = SystemTime::now();
    faults.insert(key.clone(), Fault { what, since });
    true
}

/// A periodic check of something that changes on its own.
pub(crate) trait Monitor: Send + 'static {
    /// Checks once. Must not occupy a reactor for longer than one configuration step.
    fn check(&mut self) -> impl Future<Output = Result<(), CallError>> + Send;
}

/// Runs the checks of a monitor until the server stops: what is lost during shutdown is not reported. A check that
/// panics is logged with the monitor's type, and retried after a pause.
pub(crate) async fn monitor<L: Monitor>(mut monitor: L, shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if shared.is_stopping() {
            return;
        }
        // Unwind safety: a monitor's state is only observations, which the next check corrects.
        match AssertUnwindSafe(monitor.check()).catch_unwind().await {
            Ok(Err(CallError::Stopped)) => return,
            Ok(_) => {}
            Err(_) => {
                let monitor = std::any::type_name::<L>();
                tracing::error!(monitor, "a check panicked; it is retried");
                tokio::time::sleep(AFTER_PANIC).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Claims;

    #[test]
    fn a_fault_is_one_of_all_dependents() {
        let shared = Shared::new();
        let (health, registry) = (Health::new(Arc::clone(&shared)), &shared.registry);
        let hold = |key: &str, claims: Claims| {
            let name = Name::new(key.into(), None);
            let claims = claims.owns(key);
            registry.reserve(&name, &claims).unwrap().settle(claims);
            name
        };
        let base = Key::bdev("base");
        let volume = hold("aioVolumes/base", Claims::new().owns(base.clone()));
        let upper = Claims::new().owns(Key::bdev("upper")).takes(base.clone());
        hold("encryptedVolumes/upper", upper);
        let taken = hold("namespaces/n", Claims::new().takes(Key::bdev("upper")));
        let other = hold("namespaces/o", Claims::new().takes(Key::bdev("other")));

        let fault_of = |name: &Name| health.fault_of_dependencies(name).map(|fault| fault.what);
        let of = |name: &Name| health.fault_of(name).map(|fault| fault.what);
        assert!(health.note(&base, Some("cut off".into())));
        let since = health.fault(&base).unwrap().since;
        assert!(!health.note(&base, Some("cut off still".into())), "no news");
        assert_eq!(health.fault(&base).unwrap().since, since);
        assert_eq!(fault_of(&taken), Some("cut off still".into()));
        assert_eq!(fault_of(&other), None);
        assert!(health.note(&base, None));
        assert_eq!(fault_of(&taken), None);

        health.note_failing(&base, Some("I/O fails".into()));
        assert!(!health.note(&base, None), "another look finds nothing");
        let fails = Some("I/O fails".into());
        assert_eq!(of(&volume), fails);
        assert_eq!(of(&taken), fails);
        assert_eq!(of(&other), None);
        health.note_failing(&base, None);
        assert_eq!(of(&volume), None);

        let path = hold("paths/p", Claims::new().owns("the path to there"));
        health.note(&Key::from("the path to there"), Some("dropped".into()));
        assert_eq!(of(&path), Some("dropped".into()), "whatever it owns");
    }

    /// Monitor that panics at its first check, and stops at its third.
    struct Panics(Arc<std::sync::atomic::AtomicU32>);

    impl Monitor for Panics {
        async fn check(&mut self) -> Result<(), CallError> {
            match self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => panic!("expected by this test"),
                1 => Ok(()),
                _ => Err(CallError::Stopped),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_monitor_outlives_a_check_that_panics() {
        let checks = Arc::new(std::sync::atomic::AtomicU32::new(0));
        monitor(Panics(Arc::clone(&checks)), Shared::new()).await;
        assert_eq!(checks.load(std::sync::atomic::Ordering::Relaxed), 3);
    }
}
