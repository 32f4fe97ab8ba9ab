//! virtio-scsi controllers with up to eight targets of one LUN each, which come and
//! go while virtual machines are connected.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{c_int, c_void};

use spdk_sys as sys;

use super::{CHANGE_LIMIT, Device, check_made, check_name, remove, unlocked, until};
use crate::completion::{Promise, call};
use crate::cstr::cstr;
use crate::deadline::within;
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// Targets that a controller can have.
pub const MAX_TARGETS: u8 = 8;

thread_local! {
    /// The controllers that are of this kind: SPDK does not tell, and looks for targets
    /// in one of the other kind through a null pointer.
    static NAMES: RefCell<HashSet<String>> = RefCell::default();
}

/// The controller, or ENODEV of `operation`. Not to be kept across an await.
fn existing(spdk: Spdk, operation: &'static str, name: &str) -> Result<Device, Error> {
    if NAMES.with_borrow(|names| names.contains(name)) {
        return super::existing(spdk, operation, name);
    }
    Err(Error::new(operation, libc::ENODEV)
        .with_detail(format!("there is no SCSI controller {name:?}")))
}

/// Makes a controller without targets, and its socket. EEXIST for a name in use,
/// EINVAL for one that cannot be, EPERM without hugepages or for a path that is too
/// long, EADDRNOTAVAIL if the socket cannot be made.
pub async fn create(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "create vhost-user-scsi controller";
    unlocked(spdk, OPERATION).await?;
    let socket = check_name(spdk, OPERATION, name)?;
    let c_name = cstr("controller name", name)?;
    // SAFETY: on the app thread; SPDK copies the name; no mask is all cores.
    let rc = unsafe { sys::spdk_vhost_scsi_dev_construct(c_name.as_ptr(), std::ptr::null()) };
    check_made(OPERATION, &socket, rc)?;
    NAMES.with_borrow_mut(|names| names.insert(name.to_owned()));
    Ok(())
}

/// Removes a controller with its targets, and its socket. ENODEV if there is none of
/// that name, EBUSY while a virtual machine is connected.
pub async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "delete vhost-user-scsi controller";
    existing(spdk, OPERATION, name)?;
    remove(spdk, OPERATION, name).await?;
    NAMES.with_borrow_mut(|names| names.remove(name));
    Ok(())
}

/// Gives a controller a target whose LUN 0 is the bdev, and answers its number: the
/// one asked for, or the lowest that is free.
///
/// ENODEV for an unknown controller or bdev, EBUSY for a bdev that a module claims,
/// EEXIST for a number in use, ENOSPC if none is free, EINVAL for one over the
/// highest.
pub async fn add_target(
    spdk: Spdk,
    name: &str,
    number: Option<u8>,
    bdev: &str,
) -> Result<u8, Error> {
    const OPERATION: &str = "add SCSI target";
    let device = existing(spdk, OPERATION, name)?;
    super::check_bdev(spdk, OPERATION, bdev)?;
    let c_bdev = cstr("bdev name", bdev)?;
    // SAFETY: on the app thread, the controller just found; SPDK copies the name.
    let rc = unsafe {
        sys::spdk_vhost_scsi_dev_add_tgt(
            device.as_ptr(),
            number.map_or(-1, c_int::from),
            c_bdev.as_ptr(),
        )
    };
    let detail = |error: Error| {
        error.with_detail(format!(
            "target {number:?} of {name:?}, which has {MAX_TARGETS}"
        ))
    };
    check(OPERATION, rc).map_err(detail)?;
    let number = u8::try_from(rc).map_err(|_| detail(Error::new(OPERATION, libc::EIO)))?;
    // Until then SPDK would refuse to remove it.
    until(spdk, OPERATION, name, || {
        has_target(spdk, OPERATION, name, number)
    })
    .await?;
    Ok(number)
}

/// Whether a target could have this bdev. ENODEV if there is none of that name, EBUSY
/// if a module claims it.
pub fn check_bdev(spdk: Spdk, bdev: &str) -> Result<(), Error> {
    super::check_bdev(spdk, "check LUN", bdev)
}

/// Removes a target once its I/O is done. ENODEV for an unknown controller, ENOENT
/// for an unknown target, ETIMEDOUT if its I/O does not end: SPDK then removes it when
/// it does.
pub async fn remove_target(spdk: Spdk, name: &str, number: u8) -> Result<(), Error> {
    const OPERATION: &str = "remove SCSI target";
    let device = existing(spdk, OPERATION, name)?;
    if !has_target(spdk, OPERATION, name, number)? {
        return Err(Error::new(OPERATION, libc::ENOENT)
            .with_detail(format!("{name:?} has no target {number}")));
    }
    let removed = call::<()>(OPERATION, |argument| {
        // SAFETY: on the app thread, the controller just found; `on_removed` takes
        // the argument back, once, unless the call is refused.
        unsafe {
            sys::spdk_vhost_scsi_dev_remove_tgt(
                device.as_ptr(),
                number.into(),
                Some(on_removed),
                argument,
            )
        }
    });
    let removed = within(spdk, CHANGE_LIMIT, removed).await;
    removed
        .unwrap_or_else(|| Err(Error::new(OPERATION, libc::ETIMEDOUT)))
        .map_err(|error| error.with_detail(format!("target {number} of {name:?}")))
}

fn has_target(spdk: Spdk, operation: &'static str, name: &str, number: u8) -> Result<bool, Error> {
    let device = existing(spdk, operation, name)?;
    // SAFETY: on the app thread, the controller just found, the number in range.
    Ok(number < MAX_TARGETS
        && unsafe { !sys::spdk_vhost_scsi_dev_get_tgt(device.as_ptr(), number).is_null() })
}

unsafe extern "C" fn on_removed(_: *mut sys::spdk_vhost_dev, argument: *mut c_void) -> c_int {
    // SAFETY: what `remove_target` handed out; SPDK calls once, on the thread that
    // initialised vhost, which is the app thread.
    unsafe { Promise::<()>::from_raw(argument) }.complete(());
    0
}
