//! Tracks which objects of a kind still have the bdev on which they were created.

use std::collections::HashMap;

use parking_lot::RwLock;
use spdk::bdev::Presence;

use crate::resource::{Key, Name};

/// The bdevs of all objects of a kind.
#[derive(Debug, Default)]
pub(crate) struct Presences(RwLock<HashMap<Key, Presence>>);

impl Presences {
    /// Returns whether the object still has the bdev that was noted.
    pub(crate) fn is_there(&self, name: &Name) -> bool {
        let volumes = self.0.read();
        volumes.get(name.key()).is_some_and(Presence::is_there)
    }

    /// Notes the bdev that the object uses now.
    pub(crate) fn note(&self, name: &Name, volume: Presence) {
        self.0.write().insert(name.key().clone(), volume);
    }

    /// Notes the outcome of an update, which may have changed the bdev. Fails if the update did.
    pub(crate) fn settle(
        &self,
        name: &Name,
        changed: Result<Option<Replaced<Presence>>, spdk::Error>,
    ) -> Result<(), spdk::Error> {
        let Some(Replaced { now, failed }) = changed? else {
            return Ok(());
        };
        match now {
            Some(volume) => self.note(name, volume),
            None => self.forget(name),
        }
        failed.map_or(Ok(()), Err)
    }

    /// Forgets the object's bdev, which it no longer has.
    pub(crate) fn forget(&self, name: &Name) {
        self.0.write().remove(name.key());
    }
}

/// Outcome of replacing an object, with a rollback on failure.
pub(crate) struct Replaced<T> {
    /// What exists now: the new object, the old one after a rollback, or neither.
    pub now: Option<T>,
    /// Why the new object could not be created.
    pub failed: Option<spdk::Error>,
}

impl<T> Replaced<T> {
    /// Returns the new object if it was made; otherwise runs `undo`, the rollback to the old one.
    pub(crate) async fn by(
        made: Result<T, spdk::Error>,
        undo: impl Future<Output = Result<T, spdk::Error>>,
    ) -> Self {
        let error = match made {
            Ok(new) => {
                return Self {
                    now: Some(new),
                    failed: None,
                };
            }
            Err(error) => error,
        };
        match undo.await {
            Ok(old) => Self {
                now: Some(old),
                failed: Some(error),
            },
            left => Self {
                now: None,
                failed: Some(error.after_undo(left)),
            },
        }
    }
}
