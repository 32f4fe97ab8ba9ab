//! A record: what was asked for, what that came to, and which revision of it is durable. All changes
//! of records are here: each is in the store before it is in memory, and in memory before it is
//! answered.

use std::sync::Arc;

use prost::Message;
use prost_reflect::ReflectMessage;

use super::{Collection, Kind, Name};
use crate::error::Error;
use crate::events::{Event, EventType, Ticket};
use crate::state::{Change, Entry};
use crate::telemetry::traces;

/// One resource.
#[derive(Debug, Clone)]
pub(super) struct Record<T> {
    /// As it was asked for: what a repeated create is compared with, and an update starts from.
    pub wanted: T,
    /// As it is, with every choice of the server.
    pub object: T,
    /// The revision at which it was created.
    pub created: u64,
    /// The revision of its last change.
    pub revision: u64,
    /// The revision that the store has; `None` where it has none.
    pub stored: Option<u64>,
    /// A delete has begun, and is brought to its end whatever happens.
    pub deleting: bool,
    /// What SPDK has where that is not `object`: a change that could not be stored, nor undone, or one
    /// that is stored and not made yet.
    pub actual: Option<T>,
    /// The configuration file made it: it is read-only, and not stored.
    pub configured: bool,
}

impl<T: Clone> Record<T> {
    /// A record that is not stored yet, and so has no revision.
    pub fn new(wanted: T, object: T) -> Self {
        Self {
            wanted,
            object,
            created: 0,
            revision: 0,
            stored: None,
            deleting: false,
            actual: None,
            configured: false,
        }
    }

    /// Whether it is what a create has left that was neither answered nor stored.
    pub fn is_leftover(&self) -> bool {
        self.deleting && self.stored.is_none()
    }

    /// Whether the store does not have it as it is here.
    pub fn is_unsaved(&self) -> bool {
        !self.configured && self.stored != Some(self.revision)
    }
}

/// The size of a volume, by the fields that those which have one of their own share.
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
    /// Makes a record durable, and then visible, and then told of, at a revision of its own.
    ///
    /// # Errors
    /// The store's, with which nothing has changed.
    pub(super) async fn save(
        &self,
        name: &Name,
        mut record: Record<K::Object>,
    ) -> Result<Arc<Record<K::Object>>, Error> {
        if record.configured {
            return Ok(self.insert(name, record));
        }
        // Before the commit: what is on disk bears it. It is given last of all, so that the events of
        // others wait no longer than for a commit.
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

    /// Removes a record for good. Its name is free afterwards.
    ///
    /// # Errors
    /// The store's, with which the record stays.
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

    /// Tells what a change of a record has come to.
    fn tell(
        &self,
        ticket: Ticket,
        name: &Name,
        before: Option<&Record<K::Object>>,
        after: &Record<K::Object>,
    ) {
        let key = name.key().as_str();
        let mut events = Vec::with_capacity(2);
        // Of a delete that has begun its condition tells.
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

    /// Shows a record as it is, stored or not.
    pub(super) fn insert(&self, name: &Name, record: Record<K::Object>) -> Arc<Record<K::Object>> {
        let record = Arc::new(record);
        let mut records = self.records.write();
        records.insert(name.key().clone(), Arc::clone(&record));
        record
    }

    pub(super) fn record(&self, name: &Name) -> Option<Arc<Record<K::Object>>> {
        self.records.read().get(name.key()).cloned()
    }

    /// Whether `record` is still what is known of `name`, now that it is locked.
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

    /// The record that was stored as this.
    ///
    /// # Errors
    /// Why it is none of this kind.
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
            configured: false,
        };
        Ok((name, record))
    }
}
