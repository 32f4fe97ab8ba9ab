//! The inflight area's region of one ring: what was taken and not completed, for the next process of
//! ours (vhost-user, "Inflight I/O tracking").

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use spdk_gate::vhost_user::MAX_RING_SIZE;
use spdk_gate::vhost_user::inflight::{Area, ENTRY, HEAD, Noted, VERSION, pending};

use super::memory::Map;

/// Offsets in a region's head.
const AT_VERSION: usize = 8;
const AT_ENTRIES: usize = 10;
const AT_LAST: usize = 12;
const AT_USED: usize = 14;

/// Offset of the counter in an entry; what says whether it is in flight comes first.
const AT_COUNTER: usize = 8;

/// A ring's region.
pub(super) struct Journal {
    _map: Arc<Map>,
    start: usize,
    entries: u16,
    counter: std::cell::Cell<u64>,
}

impl Journal {
    /// The region of a ring in a client's area, if it has one that fits.
    pub(super) fn new(map: &Arc<Map>, area: &Area, ring: u16, size: u16) -> Option<Self> {
        let region = usize::try_from(area.region(ring, size)?).ok()?;
        let end = region.checked_add(usize::try_from(area.stride()).ok()?)?;
        (end <= map.size() && map.start().is_multiple_of(8)).then(|| Self {
            _map: map.clone(),
            start: map.start() + region,
            entries: size,
            counter: std::cell::Cell::new(0),
        })
    }

    fn half(&self, at: usize) -> &AtomicU16 {
        // SAFETY: in the head of the region, which `new` found inside the mapping, aligned; whoever else
        // has the file may change it, so it is atomic.
        unsafe { AtomicU16::from_ptr(std::ptr::with_exposed_provenance_mut(self.start + at)) }
    }

    #[inline]
    fn entry(&self, head: u16) -> usize {
        let head = usize::from(head.min(self.entries.saturating_sub(1)));
        self.start + HEAD + head * ENTRY
    }

    #[inline]
    fn mark(&self, head: u16) -> &AtomicU8 {
        // SAFETY: an entry below `entries`, inside the region as in `half`.
        unsafe { AtomicU8::from_ptr(std::ptr::with_exposed_provenance_mut(self.entry(head))) }
    }

    #[inline]
    fn order(&self, head: u16) -> &AtomicU64 {
        let at = self.entry(head) + AT_COUNTER;
        // SAFETY: as in `mark`; entries are aligned to 8 bytes.
        unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(at)) }
    }

    /// Settles what a process that died has left, by the used index that the driver sees, and says which
    /// heads are to be taken again, in their order.
    pub(super) fn recover(&self, used: u16) -> Vec<u16> {
        let fresh = self.half(AT_VERSION).load(Ordering::Relaxed) == 0;
        self.half(AT_VERSION).store(VERSION, Ordering::Relaxed);
        self.half(AT_ENTRIES).store(self.entries, Ordering::Relaxed);
        if fresh {
            self.half(AT_USED).store(used, Ordering::Relaxed);
            return Vec::new();
        }
        if self.half(AT_USED).load(Ordering::Relaxed) != used {
            // It died between telling the driver of its last request and noting that here.
            let last = self.half(AT_LAST).load(Ordering::Relaxed);
            if last < self.entries {
                self.mark(last).store(0, Ordering::Relaxed);
            }
            self.half(AT_USED).store(used, Ordering::Relaxed);
        }
        let noted = (0..self.entries).map(|head| Noted {
            inflight: self.mark(head).load(Ordering::Relaxed) == 1,
            counter: self.order(head).load(Ordering::Relaxed),
        });
        let mut found = vec![(0, 0); usize::from(MAX_RING_SIZE)];
        let count = pending(noted, &mut found);
        found.truncate(count);
        if let Some((counter, _)) = found.last() {
            self.counter.set(counter.wrapping_add(1));
        }
        found.into_iter().map(|(_, head)| head).collect()
    }

    /// A request is taken.
    #[inline]
    pub(super) fn begin(&self, head: u16) {
        let counter = self.counter.get();
        self.counter.set(counter.wrapping_add(1));
        self.order(head).store(counter, Ordering::Relaxed);
        self.mark(head).store(1, Ordering::Release);
    }

    /// The driver is about to be told that a request is completed.
    #[inline]
    pub(super) fn completing(&self, head: u16) {
        self.half(AT_LAST).store(head, Ordering::Release);
    }

    /// The driver was told; the used index is now `used`.
    #[inline]
    pub(super) fn completed(&self, head: u16, used: u16) {
        self.mark(head).store(0, Ordering::Release);
        self.half(AT_USED).store(used, Ordering::Release);
    }
}
