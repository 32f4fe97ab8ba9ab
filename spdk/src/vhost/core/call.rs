//! Driver interrupts (calls): an eventfd of the client, signalled without ever blocking.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::signal::{signal, write};
use crate::error::Error;

/// An eventfd that interrupts a driver.
pub(super) struct Call(OwnedFd);

impl Call {
    /// Takes ownership of a client's fd, which must be an eventfd: writing to a full pipe or to a file could block.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Error> {
        const OPERATION: &str = "take call fd of a vhost-user client";
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let is_eventfd = link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]");
        if !is_eventfd {
            return Err(
                Error::new(OPERATION, libc::EINVAL).with_detail("a call fd must be an eventfd")
            );
        }
        set_nonblocking(&fd)?;
        Ok(Self(fd))
    }

    /// Interrupts the driver. The signal is dropped if the counter is full. Worker thread.
    #[inline]
    pub(super) fn ring(&self) {
        signal(self.0.as_raw_fd());
    }
}

/// Makes a client's fd non-blocking. The client can undo that: see [`signal`](super::signal).
fn set_nonblocking(fd: &OwnedFd) -> Result<(), Error> {
    // SAFETY: the fd is open; both calls take plain flags.
    let rc = unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if rc < 0 {
        return Err(Error::new(
            "make fd of a vhost-user client non-blocking",
            libc::EINVAL,
        ));
    }
    Ok(())
}

/// An eventfd of this process that wakes a control thread.
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> Result<Self, Error> {
        // SAFETY: takes plain values; a valid descriptor is new.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let errno = std::io::Error::last_os_error().raw_os_error();
            return Err(Error::new("make eventfd", errno.unwrap_or(libc::EIO)));
        }
        // SAFETY: created above and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes whoever polls it. Never blocks.
    pub(super) fn ring(&self) {
        write(self.0.as_raw_fd());
    }

    /// Resets the counter.
    pub(super) fn hush(&self) {
        let mut count = 0_u64;
        // SAFETY: reads 8 bytes into a local from this process's own fd, which is non-blocking.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
