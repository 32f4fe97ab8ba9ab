//! Memory of a vfio-user client, watched for truncation of its backing file.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use crate::sigbus::{self, Lost, Watch};

/// A watched mapping. Must be dropped before the memory is unmapped.
pub(crate) struct GuestMemory {
    lost: Arc<Lost>,
    _watch: Watch,
}

impl GuestMemory {
    /// Watches a mapping of `length` bytes with pages of `page` bytes; `None` if the limit of watches is reached.
    pub(crate) fn watch(start: usize, length: usize, page: usize) -> Option<Self> {
        let lost = Lost::new(bell()?);
        let watch = sigbus::watch(start, length, page, &lost).ok()?;
        Some(Self {
            lost,
            _watch: watch,
        })
    }

    /// Returns whether an access has hit a page that is no longer backed by the file.
    pub(crate) fn is_cut(&self) -> bool {
        self.lost.is_hit()
    }
}

/// An eventfd that nobody waits on: the reactor checks its clients' memory at each poll anyway.
fn bell() -> Option<&'static OwnedFd> {
    static BELL: OnceLock<Option<OwnedFd>> = OnceLock::new();
    BELL.get_or_init(|| {
        // SAFETY: eventfd takes plain values; a valid descriptor is new and owned by nobody else, so OwnedFd takes
        // ownership.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        }
    })
    .as_ref()
}
