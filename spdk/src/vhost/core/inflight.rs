//! Creates inflight areas for clients, which keep them across restarts of this process.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use spdk_gate::vhost_user::inflight::Area;

use crate::error::Error;

/// Creates an area of the size that its queues need, in a memfd sealed against truncation.
pub(super) fn make(asked: Area) -> Result<(Area, OwnedFd), Error> {
    let fail = || {
        let errno = std::io::Error::last_os_error().raw_os_error();
        Error::new("make inflight area", errno.unwrap_or(libc::EIO))
    };
    let area = Area {
        size: asked.needed(),
        offset: 0,
        ..asked
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C literal; a valid descriptor is new.
    let fd = unsafe { libc::memfd_create(c"vhost-inflight".as_ptr(), flags) };
    if fd < 0 {
        return Err(fail());
    }
    // SAFETY: created above and owned by nobody else.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(area.size).map_err(|_| fail())?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the fd is open; the call takes plain flags.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(fail());
    }
    Ok((area, file.into()))
}
