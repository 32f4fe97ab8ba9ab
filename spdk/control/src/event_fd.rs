//! An eventfd as the event of a bell: eventfd(2).

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

use crate::bell::Event;

/// Readable while it is set.
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A clear one.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(fd))
    }

    /// Another descriptor of the same event, to sleep on.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl Event for EventFd {
    fn set(&self) {
        // It does not block, and has room: a bell clears it before it sets it again.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        // A clear one is no error.
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
