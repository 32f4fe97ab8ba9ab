//! Which objects of a kind still have the volume that they were made on.

use std::collections::HashMap;

use parking_lot::RwLock;
use spdk::bdev::Presence;

use crate::resource::{Key, Name};

/// The volumes of all objects of a kind.
#[derive(Debug, Default)]
pub(crate) struct Presences(RwLock<HashMap<Key, Presence>>);

impl Presences {
    /// Whether the volume is still the one that was noted.
    pub(crate) fn is_there(&self, name: &Name) -> bool {
        let volumes = self.0.read();
        volumes.get(name.key()).is_some_and(Presence::is_there)
    }

    /// Notes what the object stands on now.
    pub(crate) fn note(&self, name: &Name, volume: Presence) {
        self.0.write().insert(name.key().clone(), volume);
    }

    /// Notes what came of a change, which may have put it on another volume; fails if the change did.
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

    /// It stands on nothing any more.
    pub(crate) fn forget(&self, name: &Name) {
        self.0.write().remove(name.key());
    }
}

/// What came of putting something in the place of another.
pub(crate) struct Replaced<T> {
    /// What is there now: the new one, or the old one again, or nothing.
    pub now: Option<T>,
    /// Why it is not the new one.
    pub failed: Option<spdk::Error>,
}

impl<T> Replaced<T> {
    /// The new one, if it could be made; otherwise `undo` puts the old one back.
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
