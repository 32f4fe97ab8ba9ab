//! Shared implementation of all resource kinds: names, collections and their verbs, field masks, paging, locks,
//! references. A kind implements [`Kind`] in one file and is listed in `services.rs`.

mod admission;
pub(crate) mod bounds;
mod claims;
mod collection;
mod condition;
mod forms;
pub(crate) mod id;
mod in_flight;
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
mod scope;
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
pub use scope::Scope;
pub(crate) use scope::is_of;
pub(crate) use slice::Slice;
pub use unusable::{Unusable, UnusableRecord};

use crate::error::Error;
use crate::events::Log;
use crate::reconcile::Queue;
use crate::state::{Memory, Store};

/// Limit on concurrent changes. SPDK's request ring is shorter; this limit only has to be finite, so that a
/// shutdown can drain the changes by acquiring every permit.
const MAX_CHANGES: u32 = 1 << 16;

/// State shared by the collections of all kinds.
pub struct Shared {
    /// Ownership and use of keys.
    pub registry: Arc<Registry>,
    /// Locks of all keys.
    pub locks: Arc<Locks>,
    /// Condition of each record: whether SPDK agrees with it.
    pub conditions: Conditions,
    /// Queue of the records to reconcile.
    pub queue: Arc<Queue>,
    /// Stored records that cannot be used.
    pub unusable: Unusable,
    /// Event log, which also assigns revisions.
    pub events: Arc<Log>,
    store: Arc<dyn Store>,
    /// Resolves UUIDs and aliases of volumes; unset in tests without SPDK.
    spdk: OnceLock<Handle>,
    changes: Arc<Semaphore>,
    stopping: AtomicBool,
    /// Whether every record restored at start has had one attempt.
    restored: watch::Sender<bool>,
    /// Duration of the replay at start.
    replay: OnceLock<Duration>,
}

impl Shared {
    /// Creates an empty state over a store in memory.
    pub fn new() -> Arc<Self> {
        let shared = Self::with(Arc::new(Memory::default()));
        shared.set_restored();
        shared
    }

    /// Creates the state over a running SPDK and a store, whose records are to be restored first.
    pub fn over(spdk: Handle, store: Arc<dyn Store>) -> Arc<Self> {
        let shared = Self::with(store);
        let _ = shared.spdk.set(spdk);
        shared
    }

    /// Creates the state over a store, without SPDK.
    pub fn with(store: Arc<dyn Store>) -> Arc<Self> {
        let events = Log::new(store.revision());
        Arc::new(Self {
            registry: Arc::default(),
            locks: Arc::default(),
            conditions: Conditions::with_log(&events),
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

    /// Returns the store of the records.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Returns the highest revision up to which all changes have completed.
    pub fn revision(&self) -> u64 {
        self.events.revision()
    }

    /// Ends the replay at start: changes are admitted from now on.
    pub fn set_restored(&self) {
        self.restored.send_replace(true);
    }

    /// Records how long the replay at start took: reading all records and one attempt of each.
    pub fn set_replay(&self, took: Duration) {
        let _ = self.replay.set(took);
    }

    /// Returns the duration of the replay at start; `None` until it is complete.
    pub fn replay(&self) -> Option<Duration> {
        self.replay.get().copied()
    }

    /// Waits for the end of the replay at start.
    pub async fn restored(&self) {
        let mut restored = self.restored.subscribe();
        // The error case cannot happen: `self` owns the sender.
        let _ = restored.wait_for(|restored| *restored).await;
    }

    /// Resolves `volume_name_ref` for [`VolumeRef`](volume_ref::VolumeRef).
    async fn learn(&self, volume_name_ref: &str) -> Result<(), Error> {
        match (
            self.spdk.get(),
            volume_ref::VolumeRef::unknown(volume_name_ref),
        ) {
            (Some(spdk), Some(name)) => volume_names::learn(spdk, &self.registry, name).await,
            _ => Ok(()),
        }
    }

    /// Resolves `volume_name_ref` from the records alone, before any object is recreated after a start.
    fn recall(&self, volume_name_ref: &str) {
        if let Some(name) = volume_ref::VolumeRef::unknown(volume_name_ref) {
            volume_names::recall(&self.registry, name);
        }
    }

    /// Shuts down: drains the changes in flight, also those whose clients have disconnected, and refuses new
    /// ones. Must complete before SPDK stops.
    pub async fn stop(&self) {
        // Set before the drain: if the caller gives up the drain, changes waiting for a permit must still be
        // refused.
        self.stopping.store(true, Ordering::Release);
        self.events.close();
        if let Ok(all) = self.changes.acquire_many(MAX_CHANGES).await {
            self.changes.close();
            drop(all);
        }
    }

    /// Whether new changes are refused.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Admission of a change: waits for the replay at start, and for a permit.
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
