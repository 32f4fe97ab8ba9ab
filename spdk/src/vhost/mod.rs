//! vhost-user controllers: virtio devices behind UNIX sockets, for virtual machines. They share memory with the
//! machine, so they need hugepages.
//!
//! All controllers share one namespace: a controller's name is also its socket's name in one directory.

pub mod blk;
mod core;
pub mod scsi;

use std::cell::RefCell;
use std::time::Duration;

use crate::app_thread::Spdk;
use crate::bdev;
use crate::error::Error;

pub(crate) use self::core::set_control_cores;
pub use self::core::{Access, set_access};

/// Linux's limit for the path of a UNIX socket, without the terminator.
const SOCKET_PATH_MAX: usize = 107;

thread_local! {
    static DIRECTORY: RefCell<Option<String>> = RefCell::default();
}

/// Sets the directory of the controllers' sockets, which must exist. Must be called before the first controller is
/// created. Not called in a process without hugepages, which then has no controllers.
///
/// EINVAL if the directory's path leaves no room for names.
pub fn set_directory(_: Spdk, directory: &str) -> Result<(), Error> {
    const OPERATION: &str = "set vhost socket directory";
    let directory = directory.trim_end_matches('/');
    if directory.is_empty() || directory.len() + 1 >= SOCKET_PATH_MAX {
        return Err(Error::new(OPERATION, libc::EINVAL).with_detail(format!(
            "{directory:?} must have 1 to {} bytes",
            SOCKET_PATH_MAX - 2
        )));
    }
    DIRECTORY.set(Some(directory.to_owned()));
    Ok(())
}

/// Returns the names of all controllers of both kinds, sorted.
pub fn names(spdk: Spdk) -> Vec<String> {
    core::names(spdk)
}

/// Returns how many controllers have a virtual machine connected.
pub fn connections(spdk: Spdk) -> usize {
    core::connections(spdk)
}

/// Ends all devices with their clients, during teardown.
pub(crate) async fn stop(spdk: Spdk) {
    core::stop(spdk).await;
    blk::close_all(spdk);
    scsi::close_all(spdk);
}

/// Checks whether controllers are possible. EPERM without hugepages.
pub fn check_available(_: Spdk) -> Result<(), Error> {
    if DIRECTORY.with_borrow(Option::is_some) {
        return Ok(());
    }
    Err(Error::new("use vhost-user", libc::EPERM).with_detail(
        "it shares memory with virtual machines, and needs the server to run with hugepages",
    ))
}

/// Validates the name of a new controller; returns the path of its socket.
fn check_name(spdk: Spdk, operation: &'static str, name: &str) -> Result<String, Error> {
    check_available(spdk)?;
    if name.is_empty() || name.contains('/') {
        return Err(Error::new(operation, libc::EINVAL)
            .with_detail(format!("name {name:?} must be a file's")));
    }
    let socket = socket_path(name);
    if socket.len() > SOCKET_PATH_MAX {
        return Err(Error::new(operation, libc::EPERM).with_detail(format!(
            "socket path {socket:?} has {} bytes and may have {SOCKET_PATH_MAX}: \
             a shorter directory is needed",
            socket.len()
        )));
    }
    if core::is_there(spdk, name) {
        return Err(Error::new(operation, libc::EEXIST)
            .with_detail(format!("there is a vhost controller {name:?} already")));
    }
    Ok(socket)
}

/// Returns the path of a controller's socket.
fn socket_path(name: &str) -> String {
    DIRECTORY
        .with_borrow(|directory| format!("{}/{name}", directory.as_deref().unwrap_or_default()))
}

/// Checks whether a controller can use this bdev.
fn check_bdev(spdk: Spdk, operation: &'static str, name: &str) -> Result<(), Error> {
    let found = bdev::existing(spdk, operation, name)?;
    // SAFETY: runs on the app thread; the bdev was found without an await since.
    match unsafe { bdev::claimed_by(found.as_ptr()) } {
        Some(owner) => Err(bdev::claimed(operation, name, &owner)),
        None => Ok(()),
    }
}

/// Timeout of a target's removal.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);
