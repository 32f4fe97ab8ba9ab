//! The dirty log: one bit for each 4 KiB page written in the guest, for live migration (vhost-user, "Migration").

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::memory::{Map, View};

const PAGE: u64 = 4096;

/// A client's log, mapped.
#[derive(Clone)]
pub(super) struct Dirty(Arc<Map>);

impl Dirty {
    pub(super) fn new(map: Arc<Map>) -> Self {
        Self(map)
    }

    /// Marks a guest-physical range as written. Pages beyond the end of the log are ignored.
    pub(super) fn note(&self, address: u64, length: u64) {
        let Some(last) = length.checked_sub(1) else {
            return;
        };
        let size = self.0.size() as u64;
        let first = address / PAGE;
        let last = address.saturating_add(last) / PAGE;
        for page in first..=last {
            if page / 8 >= size {
                return;
            }
            let at = self.0.start() + (page / 8) as usize;
            // SAFETY: a byte within the log's mapping, by the check above; the client accesses it atomically too.
            let byte = unsafe { AtomicU8::from_ptr(std::ptr::with_exposed_provenance_mut(at)) };
            // Release: a client that takes the bit must find what was written to the page before it.
            byte.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }

    /// As [`note`](Self::note), for an address of this process.
    pub(super) fn note_host(&self, view: &View, address: usize, length: usize) {
        if let Some(guest) = view.to_guest(address) {
            self.note(guest, length as u64);
        }
    }
}
