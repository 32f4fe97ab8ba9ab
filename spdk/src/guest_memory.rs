//! Memory of a vfio-user client, watched for files that their owner cuts.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use crate::sigbus::{self, Lost, Watch};

/// One mapping. Dropped before it is unmapped.
pub(crate) struct GuestMemory {
    lost: Arc<Lost>,
    _watch: Watch,
}

impl GuestMemory {
    /// Watches a mapping of `length` bytes in pages of `page`; `None` if too many are watched.
    pub(crate) fn watch(start: usize, length: usize, page: usize) -> Option<Self> {
        let lost = Lost::new(bell()?);
        let watch = sigbus::watch(start, length, page, &lost).ok()?;
        Some(Self {
            lost,
            _watch: watch,
        })
    }

    /// Whether a page of it was gone when it was touched.
    pub(crate) fn is_cut(&self) -> bool {
        self.lost.is_hit()
    }
}

/// Nobody waits at it: the reactor looks at its clients' memory at each poll anyway.
fn bell() -> Option<&'static OwnedFd> {
    static BELL: OnceLock<Option<OwnedFd>> = OnceLock::new();
    BELL.get_or_init(|| {
        // SAFETY: plain values; the descriptor is owned at once.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        }
    })
    .as_ref()
}
