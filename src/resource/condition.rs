//! Conditions: whether SPDK agrees with each record.
//!
//! ```text
//!            ensure ok                    delete begins
//!   pending ───────────► applied ───────────────────────► deleting ──remove ok──► gone
//!      ▲ ensure fails,      │                                │
//!      └─ device lost ◄─────┘ ◄──────────────────────────────┘ remove fails
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::RwLock;

use super::Key;
use crate::events::{Event, Log};

/// Whether SPDK agrees with a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// SPDK has the object, as far as is known.
    #[default]
    Applied,
    /// SPDK does not have the object yet, or has lost it; creating it is retried.
    Pending(Pending),
    /// A delete has begun and is retried until it completes.
    Deleting {
        /// When the delete began.
        since: SystemTime,
    },
}

/// Why and since when a record is pending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Error of the last attempt.
    pub reason: String,
    /// When the record became pending.
    pub since: SystemTime,
    /// When the next retry is due; `None` while an attempt runs or none is scheduled yet.
    pub next_attempt: Option<Instant>,
    /// Number of failed attempts.
    pub failures: u32,
}

/// Conditions of all records; a record without an entry is applied.
#[derive(Debug)]
pub struct Conditions {
    others: RwLock<BTreeMap<Key, Condition>>,
    /// Records of which SPDK has, or may have, another version.
    unsettled: RwLock<BTreeSet<Key>>,
    events: Arc<Log>,
}

impl Conditions {
    /// Creates conditions, all applied, that publish their changes to this event log.
    pub(super) fn with_log(events: &Arc<Log>) -> Self {
        Self {
            others: RwLock::default(),
            unsettled: RwLock::default(),
            events: Arc::clone(events),
        }
    }

    fn tell(&self, key: &Key, condition: &Condition) {
        self.events
            .tell(Event::of_condition(key.as_str(), condition));
    }

    /// Returns the condition of the record with this key.
    pub fn of(&self, key: &Key) -> Condition {
        self.others.read().get(key).cloned().unwrap_or_default()
    }

    /// Returns all records that are not applied, ordered by key.
    pub fn all(&self) -> Vec<(Key, Condition)> {
        let conditions = self.others.read();
        let listed = conditions.iter();
        listed.map(|(key, c)| (key.clone(), c.clone())).collect()
    }

    /// Returns why the record is pending; `None` if it is not.
    pub fn reason(&self, key: &Key) -> Option<String> {
        match self.others.read().get(key) {
            Some(Condition::Pending(pending)) => Some(pending.reason.clone()),
            _ => None,
        }
    }

    /// Whether the record is pending.
    pub fn is_pending(&self, key: &Key) -> bool {
        matches!(self.others.read().get(key), Some(Condition::Pending(_)))
    }

    /// Whether the record is being deleted.
    pub fn is_deleting(&self, key: &Key) -> bool {
        matches!(
            self.others.read().get(key),
            Some(Condition::Deleting { .. })
        )
    }

    /// Notes whether SPDK has, or may have, another version of this record.
    pub(super) fn set_unsettled(&self, key: &Key, is_so: bool) {
        // Fast path: the common case takes no exclusive lock.
        if self.is_unsettled(key) == is_so {
            return;
        }
        let mut unsettled = self.unsettled.write();
        match is_so {
            true => unsettled.insert(key.clone()),
            false => unsettled.remove(key),
        };
    }

    /// Whether SPDK has, or may have, another version of this record.
    pub(super) fn is_unsettled(&self, key: &Key) -> bool {
        self.unsettled.read().contains(key)
    }

    /// Marks a record as applied. Returns the number of failed attempts while it was pending.
    pub(crate) fn clear(&self, key: &Key) -> u32 {
        // Fast path: the common case takes no exclusive lock.
        if !self.others.read().contains_key(key) {
            return 0;
        }
        let mut others = self.others.write();
        let before = others.remove(key);
        // Published under the lock, so that the last event matches the current condition.
        if before.is_some() {
            self.tell(key, &Condition::Applied);
        }
        drop(others);
        match before {
            Some(Condition::Pending(pending)) => pending.failures,
            _ => 0,
        }
    }

    /// Publishes that the device of an applied record fails, or with an empty reason works again. Returns whether the
    /// record is applied; of another one nothing is published.
    pub(crate) fn tell_fault(&self, key: &Key, reason: &str) -> bool {
        // Published under the lock, as by the others.
        let others = self.others.read();
        let is_applied = !others.contains_key(key);
        if is_applied {
            let event = Event::of_condition(key.as_str(), &Condition::Applied);
            self.events.tell(event.because(reason));
        }
        drop(others);
        is_applied
    }

    /// Drops the condition of a deleted record.
    pub(crate) fn forget(&self, key: &Key) {
        self.others.write().remove(key);
        self.unsettled.write().remove(key);
    }

    /// Marks a restored record as pending until its first attempt after the start.
    pub(crate) fn set_restored(&self, key: &Key) {
        let pending = Pending {
            reason: "it has not been made since the start yet".to_owned(),
            since: SystemTime::now(),
            next_attempt: None,
            failures: 0,
        };
        let condition = Condition::Pending(pending);
        let mut others = self.others.write();
        self.tell(key, &condition);
        others.insert(key.clone(), condition);
    }

    /// Marks a record as being deleted.
    pub(crate) fn set_deleting(&self, key: &Key) {
        self.replace_by_deleting(key);
    }

    /// Marks a record as being deleted, and returns its previous condition for a rollback.
    pub(crate) fn replace_by_deleting(&self, key: &Key) -> Condition {
        let since = SystemTime::now();
        let mut others = self.others.write();
        let deleting = Condition::Deleting { since };
        self.tell(key, &deleting);
        let before = others.insert(key.clone(), deleting);
        before.unwrap_or_default()
    }

    /// Rolls the condition of a record back.
    pub(crate) fn restore(&self, key: &Key, condition: Condition) {
        let mut conditions = self.others.write();
        self.tell(key, &condition);
        match condition {
            Condition::Applied => conditions.remove(key),
            other => conditions.insert(key.clone(), other),
        };
    }

    /// Marks a record as pending after a failed attempt. Returns whether this is news: the record was not
    /// pending, or for another reason. Leaves a record that is being deleted unchanged.
    pub(crate) fn set_pending(&self, key: &Key, reason: &str) -> bool {
        let mut conditions = self.others.write();
        if let Some(Condition::Deleting { .. }) = conditions.get(key) {
            return false;
        }
        if let Some(Condition::Pending(known)) = conditions.get_mut(key) {
            let is_news = known.reason != reason;
            reason.clone_into(&mut known.reason);
            known.failures = known.failures.saturating_add(1);
            known.next_attempt = None;
            if is_news {
                let condition = Condition::Pending(known.clone());
                self.tell(key, &condition);
            }
            return is_news;
        }
        let pending = Pending {
            reason: reason.to_owned(),
            since: SystemTime::now(),
            next_attempt: None,
            failures: 1,
        };
        let condition = Condition::Pending(pending);
        self.tell(key, &condition);
        conditions.insert(key.clone(), condition);
        true
    }

    /// Sets when the next retry is due, relative to now.
    pub(crate) fn set_next_attempt(&self, key: &Key, after: Duration) {
        if let Some(Condition::Pending(pending)) = self.others.write().get_mut(key) {
            pending.next_attempt = Instant::now().checked_add(after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_pending_since_the_first_failure_and_for_the_last_reason() {
        let (conditions, key) = (
            Conditions::with_log(&Log::new(0)),
            Key::from("nullVolumes/a"),
        );
        assert_eq!(conditions.of(&key), Condition::Applied);
        assert!(conditions.set_pending(&key, "no file"));
        let Condition::Pending(first) = conditions.of(&key) else {
            panic!("it is pending")
        };
        assert!(!conditions.set_pending(&key, "no file"));
        assert!(conditions.set_pending(&key, "no memory"));
        let Condition::Pending(last) = conditions.of(&key) else {
            panic!("it is pending")
        };
        assert_eq!((last.since, last.failures), (first.since, 3));
        assert_eq!(conditions.reason(&key).as_deref(), Some("no memory"));
        assert_eq!([conditions.clear(&key), conditions.clear(&key)], [3, 0]);
        conditions.set_restored(&key);
        assert!(conditions.is_pending(&key));
        assert_eq!(conditions.clear(&key), 0);
        assert!(conditions.all().is_empty());
    }
}
