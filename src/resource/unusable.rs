//! Stored records that this program cannot use: of an unknown kind, undecodable, or with the name of a volume in
//! the configuration. They stay in the store unchanged, are reported, and keep their names reserved.

use std::collections::BTreeMap;
use std::time::SystemTime;

use parking_lot::RwLock;

use super::{CallContext, Collection, Key, Kind, Name};
use crate::error::Error;
use crate::state::{Change, Entry};

/// A stored record that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusableRecord {
    /// Why it cannot be used.
    pub reason: String,
    /// Revision in the store.
    pub revision: u64,
    /// When this was detected.
    pub since: SystemTime,
}

/// All stored records that cannot be used.
#[derive(Debug, Default)]
pub struct Unusable(RwLock<BTreeMap<Key, UnusableRecord>>);

impl Unusable {
    /// Adds a record that was read and cannot be used.
    pub(crate) fn note(&self, entry: &Entry, reason: &str) {
        tracing::error!(
            object = entry.key,
            kind = entry.kind,
            reason,
            "a stored record cannot be used; it is kept, and not made"
        );
        let record = UnusableRecord {
            reason: format!("its stored record cannot be used: {reason}"),
            revision: entry.revision,
            since: SystemTime::now(),
        };
        let key = Key::from(entry.key.as_str());
        self.0.write().insert(key, record);
    }

    /// Returns all of them, ordered by key.
    pub fn all(&self) -> Vec<(Key, UnusableRecord)> {
        let records = self.0.read();
        let records = records.iter();
        records.map(|(key, it)| (key.clone(), it.clone())).collect()
    }

    /// Returns the first one whose key starts with this prefix.
    pub(crate) fn first_under(&self, prefix: &str) -> Option<Key> {
        let records = self.0.read();
        let mut from = records.range(Key::from(prefix)..);
        let (key, _) = from.next()?;
        key.as_str().starts_with(prefix).then(|| key.clone())
    }

    fn of(&self, key: &Key) -> Option<UnusableRecord> {
        self.0.read().get(key).cloned()
    }

    fn remove(&self, key: &Key) {
        self.0.write().remove(key);
    }
}

impl<K: Kind> Collection<K> {
    /// Fails for a name that belongs to a stored record that cannot be used.
    pub(super) fn check_usable(&self, name: &Name) -> Result<(), Error> {
        let Some(record) = self.shared.unusable.of(name.key()) else {
            return Ok(());
        };
        Err(Error::AlreadyExists {
            name: name.into(),
            message: format!(
                "{name} exists, and {}: delete it to have the name again",
                record.reason
            ),
        })
    }

    /// Deletes a stored record that cannot be used; SPDK has no object of it.
    ///
    /// # Errors
    /// NOT_FOUND for a missing record; the store's error, with which the record stays.
    pub(super) async fn remove_unusable(
        &self,
        call: &CallContext,
        name: &Name,
    ) -> Result<(), Error> {
        let unusable = &self.shared.unusable;
        if unusable.of(name.key()).is_none() {
            return Err(self.missing(name));
        }
        let _held = self.lock(call, name, [name.key().clone()], []).await?;
        let record = unusable.of(name.key()).ok_or_else(|| self.missing(name))?;
        let ticket = self.shared.events.begin();
        let (key, revision) = (name.key().as_str().to_owned(), ticket.revision());
        let remove = Change::Remove { key, revision };
        let removed = self.commit(name, remove, Some(record.revision)).await;
        removed.map_err(|error| Error::not_stored(name, &error))?;
        unusable.remove(name.key());
        ticket.committed([]);
        Ok(())
    }
}
