//! Durable records: the record type, and the interface of a store.
//!
//! A commit is atomic, and durable when it returns. Every engine orders the records by key, compares the
//! expected revisions before it changes anything, and publishes its commits to watchers.

mod backoff;
mod counters;
mod disk;
mod engine;
pub mod export;
mod fault;
mod file;
mod format;
mod history;
mod key;
mod leaf;
mod memory;
mod seal;
mod transaction;

use std::time::Duration;

use futures_util::future::BoxFuture;

pub use counters::Stats;
pub use disk::Disk;
pub use history::Watch;
pub use key::{KeySource, StateKey};
pub use memory::Memory;

/// One record in the store.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Typed name, as returned by [`Name::key`](crate::resource::Name::key): `nullVolumes/a`,
    /// `nvmeSubsystems/s/nvmeNamespaces/n`.
    pub key: String,
    /// Full name of the protobuf message: `opi_api.storage.v1.NullVolume`.
    pub kind: String,
    /// Revision of the record's creation: the replay order among records of one level.
    pub created: u64,
    /// Revision of the last change: unique in the process, and monotonically increasing.
    pub revision: u64,
    /// A delete has begun: replay completes the delete instead of recreating the object.
    pub deleting: bool,
    /// Protobuf of the requested object, secrets included.
    pub wanted: Vec<u8>,
    /// Protobuf of the current object with every choice of the server, secrets included.
    pub object: Vec<u8>,
}

/// Leaves out the messages, which contain secrets.
impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("kind", &self.kind)
            .field("created", &self.created)
            .field("revision", &self.revision)
            .field("deleting", &self.deleting)
            .finish_non_exhaustive()
    }
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Inserts or replaces the record.
    Put(Entry),
    /// Removes the record.
    Remove {
        /// Key of the record.
        key: String,
        /// Revision of the removal.
        revision: u64,
    },
}

impl Change {
    /// Returns the key of the record.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Remove { key, .. } => key,
        }
    }

    /// Returns the revision of the change.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Remove { revision, .. } => *revision,
        }
    }
}

/// Precondition of a commit (compare and swap): the revision of each key, `None` for no record.
pub type Expected = Vec<(String, Option<u64>)>;

/// Error of a store. After every error but [`Closed`](Error::Closed) and [`Unknown`](Error::Unknown) the store
/// is unchanged and usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A record has another revision than expected.
    #[error("{key} is at revision {}, not at {}", shown(*found), shown(*expected))]
    Conflict {
        /// Key of the record.
        key: String,
        /// Revision that the caller expected.
        expected: Option<u64>,
        /// Revision in the store.
        found: Option<u64>,
    },
    /// No space left.
    #[error("{0}")]
    Full(String),
    /// I/O error of the storage.
    #[error("{0}")]
    Io(String),
    /// I/O error that leaves unknown whether the commit is durable. A durable one is rolled back before the next
    /// write; a start before that finds it.
    #[error("{0}")]
    Unknown(String),
    /// Stored data is corrupt.
    #[error("{0}")]
    Damaged(String),
    /// No store can take the change: a record is too large.
    #[error("{0}")]
    TooLarge(String),
    /// The history no longer has the changes after that revision: scan, and watch from there.
    #[error("changes after revision {0} are no longer known: scan again")]
    TooOld(u64),
    /// The store is closed.
    #[error("the state store is closed")]
    Closed,
}

fn shown(revision: Option<u64>) -> String {
    revision.map_or_else(|| "none".to_owned(), |revision| revision.to_string())
}

/// A store of records.
pub trait Store: Send + Sync + 'static {
    /// Commits all changes or none. They are durable on return. Not cancelled when the caller drops the future:
    /// a commit that has begun completes.
    ///
    /// # Errors
    /// [`Error::Conflict`] when a key of `expected` has another revision; others as the engine says.
    fn commit(&self, changes: Vec<Change>, expected: Expected) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns the records whose keys begin with `prefix`, ordered by key.
    ///
    /// # Errors
    /// Why the engine cannot read them.
    fn scan<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>>;

    /// Watches the changes committed after this revision, or from now on with `None`, in commit order: at least
    /// the last change of each record. To miss none, watch first and scan then; a change may be seen twice.
    ///
    /// # Errors
    /// [`Error::TooOld`] when the history does not have that revision, or no longer has it.
    fn watch(&self, after: Option<u64>) -> Result<Watch, Error>;

    /// Returns the highest revision ever committed, by removals and earlier processes too.
    fn revision(&self) -> u64;

    /// Returns how long the store has been waiting for its disk; `None` if it is not.
    fn waiting(&self) -> Option<Duration> {
        None
    }

    /// Returns counters since the start; zero for a store without a file.
    fn stats(&self) -> Stats {
        Stats::default()
    }
}

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod engine_tests;
#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
pub(crate) mod sim_store;
#[cfg(test)]
mod tests;
