//! What all kinds of resources share: names, collections and their verbs, field masks, paging,
//! locks, references. A kind implements [`Kind`] in one file and is listed in `services.rs`.

pub(crate) mod bounds;
mod claims;
mod collection;
mod condition;
mod forms;
pub(crate) mod id;
mod kind;
mod lifecycle;
mod locks;
mod mask;
mod meta;
mod name;
mod others;
pub(crate) mod paging;
mod record;
mod recover;
mod registry;
mod request;
pub(crate) mod rules;
pub mod service;
mod slice;
pub mod stats;
mod unusable;
mod update;
mod volume_names;
pub mod volume_ref;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use spdk::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use claims::Claims;
pub use collection::Collection;
pub use condition::{Condition, Conditions, Pending};
pub use kind::{Change, Kind, Object, Stage};
pub use locks::Locks;
pub use mask::Changes;
pub use meta::Meta;
pub use name::{Key, Name};
pub use others::Others;
pub(crate) use recover::Records;
pub use registry::Registry;
pub use request::{CallContext, Create, DEFAULT_TIMEOUT, Delete, List, Page, Update};
pub use request::{GRPC_TIMEOUT, grpc_timeout};
pub(crate) use slice::Slice;
pub use unusable::{Unusable, UnusableRecord};

use crate::error::Error;
use crate::events::Log;
use crate::reconcile::Queue;
use crate::state::{Memory, Store};

/// How many changes may be under way at once. SPDK's request ring is shorter; this only has to be
/// finite, so that all permits can be waited for.
const MAX_CHANGES: u32 = 1 << 16;

/// What the collections of all kinds share.
pub struct Shared {
    /// Who has what and who uses whom.
    pub registry: Arc<Registry>,
    /// The locks of all names.
    pub locks: Arc<Locks>,
    /// How far SPDK agrees with the records.
    pub conditions: Conditions,
    /// The records that SPDK is to be made to agree with.
    pub queue: Arc<Queue>,
    /// The stored records that cannot be used.
    pub unusable: Unusable,
    /// What has happened, and the revisions of changes.
    pub events: Arc<Log>,
    store: Arc<dyn Store>,
    /// Who knows volumes by other names; not there in tests without SPDK.
    spdk: OnceLock<Handle>,
    changes: Arc<Semaphore>,
    stopping: AtomicBool,
    /// Whether all records of the last run have been tried.
    restored: watch::Sender<bool>,
    /// How long that took.
    replay: OnceLock<Duration>,
}

impl Shared {
    /// Nothing exists yet, and nothing outlives the process.
    pub fn new() -> Arc<Self> {
        let shared = Self::with(Arc::new(Memory::default()));
        shared.set_restored();
        shared
    }

    /// The same over an SPDK that runs and a store of records, which are to be restored first.
    pub fn over(spdk: Handle, store: Arc<dyn Store>) -> Arc<Self> {
        let shared = Self::with(store);
        let _ = shared.spdk.set(spdk);
        shared
    }

    /// Over a store of records.
    pub fn with(store: Arc<dyn Store>) -> Arc<Self> {
        let events = Log::new(store.revision());
        Arc::new(Self {
            registry: Arc::default(),
            locks: Arc::default(),
            conditions: Conditions::told_to(&events),
            queue: Queue::new(),
            unusable: Unusable::default(),
            events,
            store,
            spdk: OnceLock::new(),
            changes: Arc::new(Semaphore::new(MAX_CHANGES as usize)),
            stopping: AtomicBool::new(false),
            restored: watch::Sender::new(false),
            replay: OnceLock::new(),
        })
    }

    /// The store of the records.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The revision of the last change, before which all have come to their ends.
    pub fn revision(&self) -> u64 {
        self.events.revision()
    }

    /// All records have been tried once: changes are taken from now on.
    pub fn set_restored(&self) {
        self.restored.send_replace(true);
    }

    /// Takes note how long it took to read all records and to try each once.
    pub fn set_replay(&self, took: Duration) {
        let _ = self.replay.set(took);
    }

    /// How long that took; `None` until it is done.
    pub fn replay(&self) -> Option<Duration> {
        self.replay.get().copied()
    }

    /// Waits until all records have been tried once.
    pub async fn restored(&self) {
        let mut restored = self.restored.subscribe();
        // The sender lives as long as this.
        let _ = restored.wait_for(|restored| *restored).await;
    }

    /// Has [`VolumeRef`](volume_ref::VolumeRef) know what `volume_name_ref` means.
    async fn learn(&self, volume_name_ref: &str) -> Result<(), Error> {
        match (
            self.spdk.get(),
            volume_ref::VolumeRef::unknown(volume_name_ref),
        ) {
            (Some(spdk), Some(name)) => volume_names::learn(spdk, &self.registry, name).await,
            _ => Ok(()),
        }
    }

    /// The same from the records alone, before anything is made after a start.
    fn recall(&self, volume_name_ref: &str) {
        if let Some(name) = volume_ref::VolumeRef::unknown(volume_name_ref) {
            volume_names::recall(&self.registry, name);
        }
    }

    /// Waits for the changes that are under way, also those whose clients have gone, and refuses
    /// further ones. For the end of the program, before SPDK stops.
    pub async fn stop(&self) {
        // Also where this wait is given up: what queues behind it must not begin then.
        self.stopping.store(true, Ordering::Release);
        self.events.close();
        if let Ok(all) = self.changes.acquire_many(MAX_CHANGES).await {
            self.changes.close();
            drop(all);
        }
    }

    /// Whether changes are refused by now.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Lets a change begin, once all records have been tried.
    async fn begin(&self, call: &CallContext) -> Result<OwnedSemaphorePermit, Error> {
        let by = tokio::time::Instant::from_std(call.answer_by());
        if tokio::time::timeout_at(by, self.restored()).await.is_err() {
            return Err(Error::Unavailable(format!(
                "the server has just started and makes what it had before, of which {} objects are \
                 left: try again, or read meanwhile",
                self.conditions.all().len()
            )));
        }
        let permit = Arc::clone(&self.changes).acquire_owned();
        let Ok(permit) = tokio::time::timeout_at(by, permit).await else {
            return Err(Error::ResourceExhausted(format!(
                "{MAX_CHANGES} changes are under way, and none of them has ended in time: try again later"
            )));
        };
        permit
            .ok()
            .filter(|_| !self.is_stopping())
            .ok_or_else(|| Error::Unavailable("the server is stopping and takes no changes".into()))
    }
}
