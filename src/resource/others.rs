//! Read-only access of a kind to the records of another kind.

use std::sync::Arc;

use super::{Collection, Key, Kind, Meta, Name};
use crate::api::storage::VolumeStats;
use crate::error::Error;

/// The records of another kind, read-only.
pub struct Others<K: Kind>(Arc<Collection<K>>);

impl<K: Kind> Others<K> {
    /// Creates a read-only view of this collection.
    pub fn of(collection: Arc<Collection<K>>) -> Self {
        Self(collection)
    }

    /// Returns the object with this typed name, secrets included: never for responses.
    pub fn object(&self, key: &Key) -> Option<K::Object> {
        self.0.object(key)
    }

    /// Returns all objects, secrets included, as [`object`](Self::object) does.
    pub fn objects(&self) -> Vec<(Name, K::Object)> {
        self.0.objects()
    }

    /// Reads SPDK's counters of the object with this name.
    ///
    /// # Errors
    /// Those of [`Collection::stats`].
    pub async fn stats(&self, name: &str) -> Result<VolumeStats, Error> {
        self.0.stats(name).await
    }

    /// Returns whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how the kind and its names are spelled.
    pub fn meta(&self) -> &Meta {
        self.0.meta()
    }

    /// Returns the kind, for its state beyond the records.
    pub fn kind(&self) -> &K {
        self.0.kind()
    }
}
