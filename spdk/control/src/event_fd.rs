//! An eventfd as the event of a bell; see eventfd(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::bell::Event;

/// An eventfd, readable while the event is set.
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Creates a clear event.
    ///
    /// # Errors
    /// The process or the system is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(fd))
    }

    /// Duplicates the descriptor, for a sleeper.
    ///
    /// # Errors
    /// The process or the system is out of file descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Event for EventFd {
    fn set(&self) {
        // Never blocks or overflows: a bell clears the event before it sets it again.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        // EAGAIN of an event that is clear already is not an error.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

#[cfg(test)]
impl EventFd {
    pub(crate) fn is_set(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)) == Ok(1)
    }
}
