//! Ends unanswered I/O by resetting the bdev and those below it.

use std::ffi::c_void;

use spdk_sys as sys;

use super::descriptor::Descriptor;
use super::existing;
use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::error::{Error, check};

/// Owned by the reset until it completes, however long after its caller.
struct Resetting {
    channel: *mut sys::spdk_io_channel,
    /// Closed after the channel is released.
    descriptor: Descriptor,
}

impl Drop for Resetting {
    fn drop(&mut self) {
        // SAFETY: runs on the app thread, where the channel was taken; released only here.
        unsafe { sys::spdk_put_io_channel(self.channel) };
    }
}

/// Starts a reset of the bdev, which fails all of its I/O in flight or queued. Returns before the reset completes.
/// Until then the backend may still access the data.
///
/// ENODEV if there is no such bdev, ENOTSUP if its kind cannot be reset. App thread.
pub(crate) fn end_io(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "reset bdev";
    let bdev = existing(spdk, OPERATION, name)?.as_ptr();
    let io_type = sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_RESET;
    // SAFETY: runs on the app thread; the bdev was found without an await since.
    if !unsafe { sys::spdk_bdev_io_type_supported(bdev, io_type) } {
        return Err(Error::new(OPERATION, libc::ENOTSUP)
            .with_detail(format!("bdev {name:?} cannot be reset")));
    }
    // The open descriptor keeps the bdev alive: a concurrent removal completes only after the reset.
    let descriptor = Descriptor::open(spdk, OPERATION, &cstr("bdev name", name)?)?;
    // SAFETY: runs on the app thread; the descriptor was just opened.
    let channel = unsafe { sys::spdk_bdev_get_io_channel(descriptor.as_ptr()) };
    if channel.is_null() {
        return Err(Error::new(OPERATION, libc::ENOMEM));
    }
    let resetting = Box::new(Resetting {
        channel,
        descriptor,
    });
    let (descriptor, channel) = (resetting.descriptor.as_ptr(), resetting.channel);
    let raw = Box::into_raw(resetting);
    // SAFETY: runs on the channel's thread; `on_reset` takes ownership of the box, unless the reset is refused.
    let rc = unsafe { sys::spdk_bdev_reset(descriptor, channel, Some(on_reset), raw.cast()) };
    if rc != 0 {
        // SAFETY: SPDK refused the reset and did not take the box, so it is still owned here.
        drop(unsafe { Box::from_raw(raw) });
    }
    check(OPERATION, rc)
}

unsafe extern "C" fn on_reset(io: *mut sys::spdk_bdev_io, _success: bool, raw: *mut c_void) {
    // SAFETY: SPDK passes the box from `end_io` once, on the same thread, and an I/O that the callback owns; the
    // I/O must be freed before the descriptor is closed.
    unsafe {
        sys::spdk_bdev_free_io(io);
        drop(Box::from_raw(raw.cast::<Resetting>()));
    }
}
