//! A record: the requested object, the current object, and the revision that is durable. All changes of records
//! are made here, each in this order: committed to the store, applied in memory, answered.

use std::sync::Arc;

use prost::Message;
use prost_reflect::ReflectMessage;

use super::{Collection, Kind, Name};
use crate::error::Error;
use crate::events::{Event, EventType, Ticket};
use crate::state::{Change, Entry};
use crate::telemetry::traces;

/// Record of one resource.
#[derive(Debug, Clone)]
pub(super) struct Record<T> {
    /// Requested object: a repeated create is compared with it, and an update starts from it.
    pub wanted: T,
    /// Current object, with every choice of the server.
    pub object: T,
    /// Revision of its creation.
    pub created: u64,
    /// Revision of its last change.
    pub revision: u64,
    /// Revision in the store; `None` if the store does not have the record.
    pub stored: Option<u64>,
    /// A delete has begun; it is retried until it completes.
    pub deleting: bool,
    /// Object that SPDK has where it differs from `object`: after a change that could neither be stored nor
    /// rolled back, or while one is stored but not made yet.
    pub actual: Option<T>,
    /// Target of a failed update whose effects are unknown: SPDK may have parts of it beside or in place of `object`.
    pub tried: Option<T>,
    /// Created by the configuration file: read-only, and not stored.
    pub configured: bool,
}

impl<T: Clone> Record<T> {
    /// Creates a record that is not stored yet and has no revision.
    pub fn new(wanted: T, object: T) -> Self {
        Self {
            wanted,
            object,
            created: 0,
            revision: 0,
            stored: None,
            deleting: false,
            actual: None,
            tried: None,
            configured: false,
        }
    }

    /// Whether this is the leftover of a failed create, neither answered nor stored.
    pub fn is_leftover(&self) -> bool {
        self.deleting && self.stored.is_none()
    }

    /// Whether the store lacks this version of the record.
    pub fn is_unsaved(&self) -> bool {
        !self.configured && self.stored != Some(self.revision)
    }
}

/// Size of a volume in bytes, from the size fields that all volume messages share.
fn bytes(object: &impl ReflectMessage) -> Option<i64> {
    let descriptor = object.descriptor();
    let (size, count) = (
        descriptor.get_field_by_name("block_size")?,
        descriptor.get_field_by_name("blocks_count")?,
    );
    let object = object.transcode_to_dynamic();
    let size = object.get_field(&size).as_i64()?;
    size.checked_mul(object.get_field(&count).as_i64()?)
}

impl<K: Kind> Collection<K> {
    /// Makes a record durable, then visible, then publishes its events, at a new revision.
    ///
    /// # Errors
    /// The store's error; nothing has changed then.
    pub(super) async fn save(
        &self,
        name: &Name,
        mut record: Record<K::Object>,
    ) -> Result<Arc<Record<K::Object>>, Error> {
        if record.configured {
            return Ok(self.insert(name, record));
        }
        // The revision must precede the commit, which stores it. It is taken as late as possible: events of
        // later revisions wait for this ticket, and so for no longer than one commit.
        let ticket = self.shared.events.begin();
        record.revision = ticket.revision();
        if record.stored.is_none() {
            record.created = record.revision;
        }
        let put = Change::Put(self.entry(name, &record));
        let stored = self.commit(name, put, record.stored).await;
        stored.map_err(|error| Error::not_stored(name, &error))?;
        let is_new = record.stored.replace(record.revision).is_none();
        let before = self.record(name);
        let record = self.insert(name, record);
        self.tell(ticket, name, before.as_deref().filter(|_| !is_new), &record);
        Ok(record)
    }

    /// Removes a record from the store and from memory, and releases its name.
    ///
    /// # Errors
    /// The store's error; the record stays then.
    pub(super) async fn forget(
        &self,
        name: &Name,
        record: &Record<K::Object>,
    ) -> Result<(), Error> {
        let mut ticket = None;
        if record.stored.is_some() {
            let key = name.key().as_str().to_owned();
            let begun = self.shared.events.begin();
            let revision = begun.revision();
            let remove = Change::Remove { key, revision };
            let removed = self.commit(name, remove, record.stored).await;
            removed.map_err(|error| Error::delete_not_stored(name, &error))?;
            ticket = Some(begun);
        }
        self.records.write().remove(name.key());
        self.shared.registry.release(name);
        self.shared.conditions.forget(name.key());
        if let Some(ticket) = ticket {
            ticket.committed([Event::now(EventType::Deleted, name.key().as_str())]);
        }
        Ok(())
    }

    /// Publishes the events of a committed change.
    fn tell(
        &self,
        ticket: Ticket,
        name: &Name,
        before: Option<&Record<K::Object>>,
        after: &Record<K::Object>,
    ) {
        let key = name.key().as_str();
        let mut events = Vec::with_capacity(2);
        // The condition of the record reports a delete that has begun.
        if !after.deleting {
            let what = match before {
                None => EventType::Created,
                Some(_) => EventType::Updated,
            };
            events.push(Event::now(what, key));
        }
        if let Some(before) = before
            && let Some(size) = bytes(&after.object)
            && bytes(&before.object) != Some(size)
        {
            let mut resized = Event::now(EventType::VolumeResized, key);
            resized.size_bytes = size;
            events.push(resized);
        }
        ticket.committed(events);
    }

    /// Publishes a record in memory, stored or not. One of which SPDK may have another version gets no new users.
    pub(super) fn insert(&self, name: &Name, record: Record<K::Object>) -> Arc<Record<K::Object>> {
        let differs = record.actual.is_some() || record.tried.is_some();
        self.shared.conditions.set_unsettled(name.key(), differs);
        let record = Arc::new(record);
        let mut records = self.records.write();
        records.insert(name.key().clone(), Arc::clone(&record));
        record
    }

    pub(super) fn record(&self, name: &Name) -> Option<Arc<Record<K::Object>>> {
        self.records.read().get(name.key()).cloned()
    }

    /// Whether `record` is still the current record of `name`; checked after its lock was acquired.
    pub(super) fn is_current(&self, name: &Name, record: &Arc<Record<K::Object>>) -> bool {
        let records = self.records.read();
        let current = records.get(name.key());
        current.is_some_and(|current| Arc::ptr_eq(current, record))
    }

    pub(super) async fn commit(
        &self,
        name: &Name,
        change: Change,
        expected: Option<u64>,
    ) -> Result<(), crate::state::Error> {
        let expected = vec![(name.key().as_str().to_owned(), expected)];
        let commit = self.shared.store.commit(vec![change], expected);
        traces::child("store commit", commit).await
    }

    fn entry(&self, name: &Name, record: &Record<K::Object>) -> Entry {
        let mut object = record.object.encode_to_vec();
        object.extend(self.kind.kept(name, &record.object));
        Entry {
            key: name.key().as_str().to_owned(),
            kind: record.object.descriptor().full_name().to_owned(),
            created: record.created,
            revision: record.revision,
            deleting: record.deleting,
            wanted: record.wanted.encode_to_vec(),
            object,
        }
    }

    /// Decodes a stored record.
    ///
    /// # Errors
    /// Why the entry is not a record of this kind.
    pub(super) fn decode(&self, entry: &Entry) -> Result<(Name, Record<K::Object>), String> {
        let name = self.meta.parse("key", &entry.key);
        let name = name.map_err(|error| error.to_string())?;
        let message = |what: &str, bytes: &[u8]| {
            K::Object::decode(bytes).map_err(|error| format!("{what}: {error}"))
        };
        let record = Record {
            wanted: message("wanted", &entry.wanted)?,
            object: message("object", &entry.object)?,
            created: entry.created,
            revision: entry.revision,
            stored: Some(entry.revision),
            deleting: entry.deleting,
            actual: None,
            tried: None,
            configured: false,
        };
        Ok((name, record))
    }
}
