//! What all kinds of resources share: names, collections and their verbs, field masks, paging,
//! locks, references. A kind implements [`Kind`] in one file and is listed in `services.rs`.

pub(crate) mod bounds;
mod collection;
mod id;
mod kind;
mod locks;
mod mask;
mod meta;
mod name;
pub(crate) mod paging;
mod registry;
mod request;
pub(crate) mod rules;
pub mod service;
pub mod stats;
mod update;
mod uses;
mod volume_names;
pub mod volume_ref;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use spdk::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use collection::Collection;
pub use kind::{Change, Kind, Object};
pub use locks::Locks;
pub use mask::Changes;
pub use meta::Meta;
pub use name::{Key, Name};
pub use registry::Registry;
pub use request::{CallContext, Create, DEFAULT_TIMEOUT, Delete, List, Page, Update};
pub use request::{GRPC_TIMEOUT, grpc_timeout};
pub use uses::Uses;

use crate::error::Error;

/// How many changes may be under way at once. SPDK's request ring is shorter; this only has to be
/// finite, so that all permits can be waited for.
const MAX_CHANGES: u32 = 1 << 16;

/// What the collections of all kinds share.
pub struct Shared {
    /// Who has what and who uses whom.
    pub registry: Arc<Registry>,
    /// The locks of all names.
    pub locks: Arc<Locks>,
    /// Who knows volumes by other names; not there in tests without SPDK.
    spdk: OnceLock<Handle>,
    changes: Arc<Semaphore>,
    stopping: AtomicBool,
}

impl Shared {
    /// Nothing exists yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            registry: Arc::default(),
            locks: Arc::default(),
            spdk: OnceLock::new(),
            changes: Arc::new(Semaphore::new(MAX_CHANGES as usize)),
            stopping: AtomicBool::new(false),
        })
    }

    /// The same over an SPDK that runs.
    pub fn over(spdk: Handle) -> Arc<Self> {
        let shared = Self::new();
        let _ = shared.spdk.set(spdk);
        shared
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

    /// Waits for the changes that are under way, also those whose clients have gone, and refuses
    /// further ones. For the end of the program, before SPDK stops.
    pub async fn stop(&self) {
        // Also where this wait is given up: what queues behind it must not begin then.
        self.stopping.store(true, Ordering::Release);
        if let Ok(all) = self.changes.acquire_many(MAX_CHANGES).await {
            self.changes.close();
            drop(all);
        }
    }

    /// Whether changes are refused by now.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    async fn begin(&self) -> Result<OwnedSemaphorePermit, Error> {
        let permit = Arc::clone(&self.changes).acquire_owned().await.ok();
        permit
            .filter(|_| !self.is_stopping())
            .ok_or_else(|| Error::Unavailable("the server is stopping and takes no changes".into()))
    }
}
