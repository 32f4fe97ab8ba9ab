//! The journal of one ring, a region of the inflight area: records requests taken and not completed, for a restart
//! of this process (vhost-user, "Inflight I/O tracking").

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use spdk_gate::vhost_user::MAX_RING_SIZE;
use spdk_gate::vhost_user::inflight::{Area, ENTRY, HEAD, Noted, VERSION, pending};

use super::memory::Map;

/// Field offsets in a region's header.
const AT_VERSION: usize = 8;
const AT_ENTRIES: usize = 10;
const AT_LAST: usize = 12;
const AT_USED: usize = 14;

/// Offset of the counter in an entry; the in-flight flag is at offset 0.
const AT_COUNTER: usize = 8;

/// The region of a ring.
pub(super) struct Journal {
    _map: Arc<Map>,
    start: usize,
    entries: u16,
    counter: std::cell::Cell<u64>,
}

impl Journal {
    /// Locates the region of a ring in a client's area; `None` if the area has no fitting one.
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
        // SAFETY: within the region's header, which `new` found inside the mapping, and aligned. The client may
        // write to the file concurrently, hence the atomic.
        unsafe { AtomicU16::from_ptr(std::ptr::with_exposed_provenance_mut(self.start + at)) }
    }

    #[inline]
    fn entry(&self, head: u16) -> usize {
        let head = usize::from(head.min(self.entries.saturating_sub(1)));
        self.start + HEAD + head * ENTRY
    }

    #[inline]
    fn mark(&self, head: u16) -> &AtomicU8 {
        // SAFETY: an entry below `entries`, hence within the region; the client may write concurrently, hence the
        // atomic.
        unsafe { AtomicU8::from_ptr(std::ptr::with_exposed_provenance_mut(self.entry(head))) }
    }

    #[inline]
    fn order(&self, head: u16) -> &AtomicU64 {
        let at = self.entry(head) + AT_COUNTER;
        // SAFETY: as in `mark`; `new` has checked that entries are aligned to 8 bytes.
        unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(at)) }
    }

    /// Reconciles the journal of a previous process with the used index that the driver sees. Returns the heads to
    /// resubmit, in their order.
    pub(super) fn recover(&self, used: u16) -> Vec<u16> {
        let fresh = self.half(AT_VERSION).load(Ordering::Relaxed) == 0;
        self.half(AT_VERSION).store(VERSION, Ordering::Relaxed);
        self.half(AT_ENTRIES).store(self.entries, Ordering::Relaxed);
        if fresh {
            self.half(AT_USED).store(used, Ordering::Relaxed);
            return Vec::new();
        }
        if self.half(AT_USED).load(Ordering::Relaxed) != used {
            // The previous process died after it published its last completion and before it recorded that here.
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

    /// Records a request as taken.
    #[inline]
    pub(super) fn begin(&self, head: u16) {
        let counter = self.counter.get();
        self.counter.set(counter.wrapping_add(1));
        self.order(head).store(counter, Ordering::Relaxed);
        self.mark(head).store(1, Ordering::Release);
    }

    /// Called before a completion is published to the driver.
    #[inline]
    pub(super) fn completing(&self, head: u16) {
        self.half(AT_LAST).store(head, Ordering::Release);
    }

    /// Called after a completion is published; `used` is the new used index.
    #[inline]
    pub(super) fn completed(&self, head: u16, used: u16) {
        self.mark(head).store(0, Ordering::Release);
        self.half(AT_USED).store(used, Ordering::Release);
    }
}
