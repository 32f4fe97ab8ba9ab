//! Locks on whole files that belong to an open file, not to the process (fcntl(2), "open file
//! description locks"): two descriptors of one process keep each other out, too.

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

/// Locks all of a file that is open for writing, until it is closed, and does not wait.
///
/// # Errors
/// EAGAIN or EACCES if somebody has locked a part of it; what else a file system answers that
/// has no such locks.
pub fn try_lock_whole(file: &File) -> Result<()> {
    set(file, libc::F_WRLCK)
}

/// Takes the lock away, also where a process that was forked meanwhile has the file open.
///
/// # Errors
/// As [`try_lock_whole`].
pub fn unlock(file: &File) -> Result<()> {
    set(file, libc::F_UNLCK)
}

fn set(file: &File, kind: libc::c_int) -> Result<()> {
    // SAFETY: a C struct for which all zero is a valid value: it also means from the first byte
    // to the end, wherever that will be.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: an open file, and a lock that the call only reads.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
