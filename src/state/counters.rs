//! What is counted of a store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a store has done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Commits that are durable.
    pub commits: u64,
    /// Syncs of its file, those that failed too.
    pub syncs: u64,
    /// Time that these took.
    pub sync_time: Duration,
    /// Size of its file.
    pub bytes: u64,
}

/// The same while it goes on. For any thread.
#[derive(Debug, Default)]
pub(super) struct Counters {
    commits: AtomicU64,
    syncs: AtomicU64,
    sync_nanos: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    pub(super) fn add_commits(&self, number: usize) {
        self.commits.fetch_add(number as u64, Ordering::Relaxed);
    }

    pub(super) fn add_sync(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> Stats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            commits: of(&self.commits),
            syncs: of(&self.syncs),
            sync_time: Duration::from_nanos(of(&self.sync_nanos)),
            bytes: of(&self.bytes),
        }
    }
}
