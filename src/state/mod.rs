//! Records that outlive the process: what a record is, and what a store of them promises.
//!
//! A commit is all or nothing, and durable when it returns. Every engine keeps the records ordered by
//! key, compares revisions before it changes anything, and hands its commits on to those who watch.

mod counters;
mod disk;
mod engine;
pub mod export;
mod fault;
mod file;
mod format;
mod history;
mod key;
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

/// One record as a store keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The typed name, as [`Name::key`](crate::resource::Name::key) has it: `nullVolumes/a`,
    /// `nvmeSubsystems/s/nvmeNamespaces/n`.
    pub key: String,
    /// Full name of the message: `opi_api.storage.v1.NullVolume`.
    pub kind: String,
    /// Revision at which it was created: the order of replay among records of one level.
    pub created: u64,
    /// Revision of its last change: unique in the whole process, and growing.
    pub revision: u64,
    /// A delete has begun: replay finishes the delete instead of making the object.
    pub deleting: bool,
    /// Protobuf of the object as it was asked for, secrets included.
    pub wanted: Vec<u8>,
    /// Protobuf of the object as it is, with every choice of the server, secrets included.
    pub object: Vec<u8>,
}

/// Without the messages: they hold secrets.
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
    /// The record is this from now on.
    Put(Entry),
    /// The record is gone.
    Remove {
        /// Its key.
        key: String,
        /// Revision of the removal.
        revision: u64,
    },
}

impl Change {
    /// The key of the record.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Remove { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Remove { revision, .. } => *revision,
        }
    }
}

/// What the store must hold for a commit to happen: of each key the revision, `None` for no record.
pub type Expected = Vec<(String, Option<u64>)>;

/// Why a store did not do what it was asked for. After every error but [`Closed`](Error::Closed) and
/// [`Unknown`](Error::Unknown) the store holds what it held before, and goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A record has another revision than was expected.
    #[error("{key} is at revision {}, not at {}", shown(*found), shown(*expected))]
    Conflict {
        /// The record.
        key: String,
        /// The revision that the caller knew.
        expected: Option<u64>,
        /// The revision that the store has.
        found: Option<u64>,
    },
    /// There is no room.
    #[error("{0}")]
    Full(String),
    /// The storage below failed.
    #[error("{0}")]
    Io(String),
    /// The storage below failed, and does not tell whether the commit is there. One that is there is undone
    /// before anything else is written; a start before that finds it.
    #[error("{0}")]
    Unknown(String),
    /// What the store has is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// The change can be kept by no store: a record is too large.
    #[error("{0}")]
    TooLarge(String),
    /// The changes after that revision are no longer known: scan, and watch from there.
    #[error("changes after revision {0} are no longer known: scan again")]
    TooOld(u64),
    /// The store has ended.
    #[error("the state store is closed")]
    Closed,
}

fn shown(revision: Option<u64>) -> String {
    revision.map_or_else(|| "none".to_owned(), |revision| revision.to_string())
}

/// A store of records.
pub trait Store: Send + Sync + 'static {
    /// Applies all changes or none. They are durable when it returns, also when the caller no longer
    /// waits: a commit that has begun is not cut off.
    ///
    /// # Errors
    /// [`Error::Conflict`] when a key of `expected` has another revision; others as the engine says.
    fn commit(&self, changes: Vec<Change>, expected: Expected) -> BoxFuture<'_, Result<(), Error>>;

    /// The records whose keys begin with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// What keeps the engine from reading them.
    fn scan<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>>;

    /// What is committed after the change of this revision, in the order of the commits, and from now on
    /// with `None`: of each record at least the last change. Watch first and scan then: a change may be met twice, none is missed.
    ///
    /// # Errors
    /// [`Error::TooOld`] when that change is not, or no longer, among the last ones.
    fn watch(&self, after: Option<u64>) -> Result<Watch, Error>;

    /// The highest revision that a commit ever had, removals and former processes included.
    fn revision(&self) -> u64;

    /// For how long the store has waited for its disk by now; `None` if it does not.
    fn waiting(&self) -> Option<Duration> {
        None
    }

    /// What it has done since the start; nothing where it has no file.
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
