//! Locks on whole files owned by the open file, not by the process (fcntl(2), "open file description locks"): two
//! open files of one process exclude each other, too.

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

/// Locks the whole of a file open for writing, without waiting. The lock is released when the file is closed.
///
/// # Errors
/// EAGAIN or EACCES if another owner has locked any part of the file; other values from file systems without such
/// locks.
pub fn try_lock_whole(file: &File) -> Result<()> {
    set(file, libc::F_WRLCK)
}

/// Releases the lock, also if a process forked meanwhile still has the file open.
///
/// # Errors
/// As [`try_lock_whole`].
pub fn unlock(file: &File) -> Result<()> {
    set(file, libc::F_UNLCK)
}

fn set(file: &File, kind: libc::c_int) -> Result<()> {
    // SAFETY: a C struct of integers, for which all zero is valid; start and length 0 mean the whole file, however
    // long it becomes.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open, and `lock` is valid for reads; F_OFD_SETLK does not write to it.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
