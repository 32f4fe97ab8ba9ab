//! The records of another kind, as a kind may see them: to be read alone.

use std::sync::Arc;

use super::{Collection, Key, Kind, Meta, Name};

/// All records of a kind. Nothing is made, changed or removed through it.
pub struct Others<K: Kind>(Arc<Collection<K>>);

impl<K: Kind> Others<K> {
    /// Those of this collection.
    pub fn of(collection: Arc<Collection<K>>) -> Self {
        Self(collection)
    }

    /// The object under this typed name with all that is in it, keys too: not for answers.
    pub fn object(&self, key: &Key) -> Option<K::Object> {
        self.0.object(key)
    }

    /// All objects, as [`object`](Self::object) gives one.
    pub fn objects(&self) -> Vec<(Name, K::Object)> {
        self.0.objects()
    }

    /// How they are named.
    pub fn meta(&self) -> &Meta {
        self.0.meta()
    }

    /// What the kind knows of them beyond their records.
    pub fn kind(&self) -> &K {
        self.0.kind()
    }
}
