//! vhost-user controllers: virtio devices behind UNIX sockets, for virtual machines.
//! They share memory with the machine, so they need hugepages.
//!
//! All controllers share one space of names, which are also their sockets' names in
//! one directory.
//!
//! Controllers come and go on the app thread alone, so it may walk and search them
//! without SPDK's vhost lock. Making and removing one takes that lock inside SPDK,
//! while the threads that talk with virtual machines hold it now and then: what would
//! have to wait for it is tried again later, so that the reactor does not.

pub mod blk;
mod core;
pub mod scsi;

use std::cell::RefCell;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::time::Duration;

use spdk_sys as sys;

use crate::bdev;
use crate::cstr::{cstr, string};
use crate::deadline::within;
use crate::error::{Error, check};
use crate::runtime::Spdk;
use crate::timer::sleep;

pub(crate) use self::core::set_control_cores;
pub use self::core::{Access, set_access};

/// Linux's limit to a UNIX socket's path, without the terminator.
const SOCKET_PATH_MAX: usize = 107;

thread_local! {
    static DIRECTORY: RefCell<Option<String>> = RefCell::default();
}

/// Has the sockets of controllers be in `directory`, which exists. Before the first
/// controller; where this is not called there are none, which is for a process
/// without hugepages.
///
/// EINVAL for a directory that leaves no room for names.
pub fn set_directory(_: Spdk, directory: &str) -> Result<(), Error> {
    const OPERATION: &str = "set vhost socket directory";
    let directory = directory.trim_end_matches('/');
    if directory.is_empty() || directory.len() + 1 >= SOCKET_PATH_MAX {
        return Err(Error::new(OPERATION, libc::EINVAL).with_detail(format!(
            "{directory:?} must have 1 to {} bytes",
            SOCKET_PATH_MAX - 2
        )));
    }
    let c_directory = cstr("directory", directory)?;
    // SAFETY: on the app thread; SPDK copies the text.
    check(OPERATION, unsafe {
        sys::spdk_vhost_set_socket_path(c_directory.as_ptr())
    })?;
    // It would write each message of each machine to stderr.
    // SAFETY: sets a level by a pattern that outlives the call.
    unsafe { sys::rte_log_set_level_pattern(c"lib.vhost*".as_ptr(), sys::RTE_LOG_WARNING) };
    DIRECTORY.set(Some(directory.to_owned()));
    Ok(())
}

/// The names of all controllers, of both kinds, in their order.
pub fn names(spdk: Spdk) -> Vec<String> {
    let mut names = core::names(spdk);
    // SAFETY: on the app thread, where alone controllers come and go, and without an
    // await in between: every pointer stays valid through the walk.
    unsafe {
        let mut device = sys::spdk_vhost_dev_next(std::ptr::null_mut());
        while !device.is_null() {
            names.push(string(sys::spdk_vhost_dev_get_name(device)));
            device = sys::spdk_vhost_dev_next(device);
        }
    }
    names
}

/// Ends all devices of ours, with their clients: the process stops.
pub(crate) async fn stop(spdk: Spdk) {
    core::stop(spdk).await;
    blk::close_all(spdk);
}

type Device = NonNull<sys::spdk_vhost_dev>;

fn find(_: Spdk, name: &str) -> Result<Option<Device>, Error> {
    let name = cstr("controller name", name)?;
    // SAFETY: on the app thread, where alone controllers come and go, so that the
    // result stays valid until the next await.
    Ok(NonNull::new(unsafe {
        sys::spdk_vhost_dev_find(name.as_ptr())
    }))
}

/// The controller, or ENODEV of `operation`. Not to be kept across an await.
fn existing(spdk: Spdk, operation: &'static str, name: &str) -> Result<Device, Error> {
    find(spdk, name)?.ok_or_else(|| {
        Error::new(operation, libc::ENODEV)
            .with_detail(format!("there is no vhost controller {name:?}"))
    })
}

/// Whether there can be controllers; EPERM without hugepages.
pub fn check_available(_: Spdk) -> Result<(), Error> {
    if DIRECTORY.with_borrow(Option::is_some) {
        return Ok(());
    }
    Err(Error::new("use vhost-user", libc::EPERM).with_detail(
        "it shares memory with virtual machines, and needs the server to run with hugepages",
    ))
}

/// Whether a controller can have this name; where its socket will be.
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
    if find(spdk, name)?.is_some() || core::is_there(spdk, name) {
        return Err(Error::new(operation, libc::EEXIST)
            .with_detail(format!("there is a vhost controller {name:?} already")));
    }
    Ok(socket)
}

/// Where the socket of a controller is.
fn socket_path(name: &str) -> String {
    DIRECTORY
        .with_borrow(|directory| format!("{}/{name}", directory.as_deref().unwrap_or_default()))
}

/// SPDK's word on the making of a controller.
fn check_made(operation: &'static str, socket: &str, rc: c_int) -> Result<(), Error> {
    if rc == -libc::EIO {
        return Err(
            Error::new(operation, libc::EADDRNOTAVAIL).with_detail(format!(
                "no socket can be made at {socket:?}: something else is there, or the directory \
             takes no files"
            )),
        );
    }
    check(operation, rc).map_err(|error| error.with_detail(format!("{socket:?}")))
}

/// Whether a controller can use this bdev.
fn check_bdev(spdk: Spdk, operation: &'static str, name: &str) -> Result<(), Error> {
    let found = bdev::existing(spdk, operation, name)?;
    // SAFETY: on the app thread, the bdev just found.
    match unsafe { bdev::claimed_by(found.as_ptr()) } {
        Some(owner) => Err(bdev::claimed(operation, name, &owner)),
        None => Ok(()),
    }
}

/// How long SPDK may take to bring a change to the controller's own thread.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);

/// Between two tries at what is held by another thread: at first, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The last pause before giving up: half a second in all, which a machine that has
/// just been unplugged needs to disconnect.
const LAST_PAUSE: Duration = Duration::from_millis(256);

/// Removes a controller and returns when it is gone.
async fn remove(spdk: Spdk, operation: &'static str, name: &str) -> Result<(), Error> {
    let mut pause = FIRST_PAUSE;
    loop {
        unlocked(spdk, operation).await?;
        let device = existing(spdk, operation, name)?;
        // SAFETY: on the app thread, the controller just found.
        let rc = unsafe { sys::spdk_vhost_dev_remove(device.as_ptr()) };
        if rc != -libc::EBUSY {
            check(operation, rc).map_err(|error| error.with_detail(format!("{name:?}")))?;
            break;
        }
        if pause > LAST_PAUSE {
            return Err(Error::new(operation, rc)
                .with_detail(format!("a virtual machine is connected to {name:?}")));
        }
        sleep(spdk, pause).await;
        pause *= 2;
    }
    until(spdk, operation, name, || Ok(find(spdk, name)?.is_none())).await
}

/// Waits until no thread holds SPDK's vhost lock. One may take it again before the
/// call that follows; that one then waits for a look-up.
async fn unlocked(spdk: Spdk, operation: &'static str) -> Result<(), Error> {
    until(spdk, operation, "vhost lock", || {
        // SAFETY: needs no more than the lock that it takes, and gives back here.
        let free = unsafe { sys::spdk_vhost_trylock() } == 0;
        if free {
            // SAFETY: this thread took the lock in the line before.
            unsafe { sys::spdk_vhost_unlock() };
        }
        Ok(free)
    })
    .await
}

/// Waits for what SPDK does on the controller's thread without telling.
async fn until(
    spdk: Spdk,
    operation: &'static str,
    what: &str,
    done: impl Fn() -> Result<bool, Error>,
) -> Result<(), Error> {
    let wait = async {
        while !done()? {
            sleep(spdk, FIRST_PAUSE).await;
        }
        Ok(())
    };
    within(spdk, CHANGE_LIMIT, wait).await.unwrap_or_else(|| {
        Err(Error::new(operation, libc::ETIMEDOUT)
            .with_detail(format!("{what:?} within {} s", CHANGE_LIMIT.as_secs())))
    })
}
