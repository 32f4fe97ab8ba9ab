//! A change in flight, which a panic or an unsettled error may cut off.

use super::record::Record;
use super::registry::Reserved;
use super::{Claims, Collection, Kind, Name};

/// A change that SPDK may have made in part. Dropping this, which is what a panic and an unsettled error do, enters the
/// record from which the queue cleans up, and keeps what the change had reserved until then.
pub(super) struct InFlight<'a, K: Kind> {
    collection: &'a Collection<K>,
    name: &'a Name,
    begun: Option<(Record<K::Object>, Reserved)>,
}

impl<'a, K: Kind> InFlight<'a, K> {
    /// `left` is the record to clean up from: one that is deleting, or one with the version that was tried.
    pub(super) fn new(
        collection: &'a Collection<K>,
        name: &'a Name,
        left: Record<K::Object>,
        reserved: Reserved,
    ) -> Self {
        Self {
            collection,
            name,
            begun: Some((left, reserved)),
        }
    }

    /// The change failed and left nothing in SPDK: rolls its reservation back.
    pub(super) fn failed(mut self) {
        self.begun = None;
    }

    /// The change was made, or its rollback is left to the queue: replaces the reservation by these claims.
    pub(super) fn made(mut self, claims: Claims) {
        if let Some((_, reserved)) = self.begun.take() {
            reserved.settle(claims);
        }
    }
}

impl<K: Kind> Drop for InFlight<'_, K> {
    fn drop(&mut self) {
        if let Some((record, reserved)) = self.begun.take() {
            reserved.keep();
            self.collection.clean_up_later(self.name, record);
        }
    }
}

impl<K: Kind> Collection<K> {
    /// Enters a record that says what SPDK may have, for the queue to clean up; retried until it succeeds.
    pub(super) fn clean_up_later(&self, name: &Name, record: Record<K::Object>) {
        let is_deleting = record.deleting;
        self.insert(name, record);
        let conditions = &self.shared.conditions;
        if is_deleting {
            conditions.set_deleting(name.key());
        } else {
            let reason = "what a failed update left in SPDK is still to be removed";
            conditions.set_pending(name.key(), reason);
        }
        self.shared.queue.put(name.key());
    }
}
