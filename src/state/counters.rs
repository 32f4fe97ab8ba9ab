//! Counters of a store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of a store since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Durable commits.
    pub commits: u64,
    /// Syncs of the file, failed ones included.
    pub syncs: u64,
    /// Total duration of the syncs.
    pub sync_time: Duration,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// Live counters, updated from any thread.
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
