//! Reconciler: makes SPDK agree with the records, with retries until it does.
//!
//! ```text
//! start: stored records ─► memory ─► each tried once, stage by stage ─► changes are admitted
//!                                        │ fails
//! a watcher sees a loss ──► queue ◄──────┘ ◄─ a change was cut off, or could not be stored
//!                             └─► one attempt of a key at a time ── fails ─► queue, with backoff
//! ```

mod queue;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

pub use queue::Queue;

use crate::resource::{Key, Name, Records, Shared, Stage};
use crate::state::Entry;

/// Maximum number of concurrent attempts. An attempt that exceeds [`LIMIT`] no longer counts.
const AT_ONCE: usize = 64;

/// Time after which an attempt gives its permit to others.
const LIMIT: Duration = Duration::from_secs(10);

/// The record kinds, and what the start found.
pub struct Reconciler {
    shared: Arc<Shared>,
    kinds: HashMap<String, Arc<dyn Records>>,
    panics: AtomicU64,
}

/// Records of one stage that can be attempted concurrently.
type Level = Vec<Key>;

impl Reconciler {
    /// Creates a reconciler of these kinds.
    pub(crate) fn new(shared: &Arc<Shared>, kinds: Vec<Arc<dyn Records>>) -> Arc<Self> {
        let named = kinds.into_iter();
        let named = named.map(|kind| (kind.collection().to_owned(), kind));
        Arc::new(Self {
            shared: Arc::clone(shared),
            kinds: named.collect(),
            panics: AtomicU64::new(0),
        })
    }

    /// Number of attempts that have panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Loads all stored records into memory, where they can be read from then on, except those that `aside`
    /// takes. Notes the records that cannot be used in [`Unusable`](crate::resource::Unusable).
    ///
    /// # Errors
    /// One line for the operator: why the store cannot be read.
    pub async fn load(&self, aside: impl Fn(&Entry) -> bool) -> Result<Vec<Name>, String> {
        let entries = self.shared.store().scan("").await;
        let entries = entries.map_err(|error| format!("state-dir: {error}"))?;
        let mut staged: Vec<(Stage, Arc<dyn Records>, Entry)> = Vec::new();
        for entry in entries {
            if aside(&entry) {
                continue;
            }
            let Some(kind) = self.kind(&entry.key) else {
                let reason = format!("its kind {} is unknown", entry.kind);
                self.shared.unusable.note(&entry, &reason);
                continue;
            };
            staged.push((kind.stage(), Arc::clone(kind), entry));
        }
        // Parents first: the claims of a kind may depend on its parents' records.
        staged.sort_by_key(|(stage, _, entry)| (*stage, entry.created));
        let mut names = Vec::with_capacity(staged.len());
        for (_, kind, entry) in staged {
            match kind.restore(&entry) {
                Ok(name) => names.push(name),
                Err(reason) => self.shared.unusable.note(&entry, &reason),
            }
        }
        Ok(names)
    }

    /// Replay at start: attempts each of these records once, dependencies first, and concurrently where there
    /// are none. [`run`](Self::run) retries those that fail.
    pub async fn replay(self: &Arc<Self>, names: &[Name]) {
        let begun = Instant::now();
        let running = Arc::new(Semaphore::new(AT_ONCE));
        for level in self.levels(names) {
            let mut attempts = JoinSet::new();
            for key in level {
                let Ok(permit) = Arc::clone(&running).acquire_owned().await else {
                    return;
                };
                if self.shared.queue.begin(&key) {
                    attempts.spawn(Arc::clone(self).attempt(key, permit));
                }
            }
            attempts.join_all().await;
        }
        let pending = self.shared.conditions.all().len();
        if !names.is_empty() {
            tracing::info!(records = names.len(), pending, took = ?begun.elapsed(), "records restored");
        }
        self.warn_of_empty_volumes(names);
    }

    /// Reconciles every record put into the queue, until the server stops.
    pub async fn run(self: Arc<Self>) {
        let running = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(permit) = Arc::clone(&running).acquire_owned().await else {
                return;
            };
            let key = self.shared.queue.next().await;
            if self.shared.is_stopping() {
                return;
            }
            tokio::spawn(Arc::clone(&self).attempt(key, permit));
        }
    }

    /// One attempt of a key. Returns at its end or at [`LIMIT`]. After the limit the attempt goes on detached,
    /// without a permit: the queue still lists its key as running, so a second attempt of the same record cannot
    /// begin.
    async fn attempt(self: Arc<Self>, key: Key, permit: OwnedSemaphorePermit) {
        let attempt = tokio::spawn(Arc::clone(&self).attempt_to_its_end(key.clone()));
        let ended = tokio::time::timeout(LIMIT, attempt).await;
        if ended.is_err() && self.shared.conditions.is_pending(&key) {
            let reason = format!("an attempt to make it has not ended within {LIMIT:?}");
            self.shared.conditions.set_pending(&key, &reason);
            tracing::warn!(object = %key, reason, "attempt over its time limit: it goes on, and leaves its place to others");
        }
        drop(permit);
    }

    async fn attempt_to_its_end(self: Arc<Self>, key: Key) {
        let Some(kind) = self.kind(key.as_str()).map(Arc::clone) else {
            self.shared.queue.done(&key, true);
            return;
        };
        let attempt = tokio::spawn(Arc::clone(&kind).reconcile(key.clone()));
        let succeeded = match attempt.await {
            Ok(result) => result.is_ok(),
            Err(error) => {
                let panics = self
                    .panics
                    .fetch_add(1, Ordering::Relaxed)
                    .saturating_add(1);
                tracing::error!(object = %key, %error, panics, "attempt panicked; it is retried");
                let reason = "an attempt was cut off by a fault of the server";
                if kind.has(&key) {
                    self.shared.conditions.set_pending(&key, reason);
                }
                false
            }
        };
        if let Some(after) = self.shared.queue.done(&key, succeeded) {
            self.shared.conditions.set_next_attempt(&key, after);
        }
    }

    /// Groups the records into levels, in the order of replay.
    fn levels(&self, names: &[Name]) -> Vec<Level> {
        let mut levels: BTreeMap<(Stage, usize), Level> = BTreeMap::new();
        let staged = names.iter().filter_map(|name| {
            let stage = self.kind(name.key().as_str())?.stage();
            Some((name, stage))
        });
        let stages: HashMap<&Name, Stage> = staged.collect();
        for name in names {
            if let Some(stage) = stages.get(name) {
                let depth = self.depth(name, &stages, 0);
                let level = levels.entry((*stage, depth)).or_default();
                level.push(name.key().clone());
            }
        }
        levels.into_values().collect()
    }

    /// Length of the longest chain of dependencies of a record within its stage.
    fn depth(&self, name: &Name, stages: &HashMap<&Name, Stage>, above: usize) -> usize {
        /// Deeper than bdevs are layered; bounds the recursion if references of bad records form a cycle.
        const DEEPEST: usize = 32;
        if above >= DEEPEST {
            return 0;
        }
        let owners = self.shared.registry.dependencies_of(name);
        let same_stage = owners
            .iter()
            .filter(|owner| stages.get(owner) == stages.get(name));
        let depths = same_stage.map(|owner| 1 + self.depth(owner, stages, above + 1));
        depths.max().unwrap_or_default()
    }

    fn kind(&self, key: &str) -> Option<&Arc<dyn Records>> {
        self.kinds.get(key.rsplit('/').nth(1)?)
    }

    /// The data of malloc volumes is in memory and is lost with the process.
    fn warn_of_empty_volumes(&self, names: &[Name]) {
        let in_memory = |name: &&Name| name.key().as_str().starts_with("mallocVolumes/");
        let count = names.iter().filter(in_memory).count();
        if count > 0 {
            tracing::warn!(
                volumes = count,
                "malloc volumes restored empty: their data was in memory"
            );
        }
    }
}
