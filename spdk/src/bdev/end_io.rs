//! The end of I/O that is not answered, by a reset of its bdev and of those below it.

use std::ffi::c_void;

use spdk_sys as sys;

use super::descriptor::Descriptor;
use super::existing;
use crate::cstr::cstr;
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// What the reset uses until it has ended, however long after its caller.
struct Resetting {
    channel: *mut sys::spdk_io_channel,
    /// Closed after the channel was given back.
    descriptor: Descriptor,
}

impl Drop for Resetting {
    fn drop(&mut self) {
        // SAFETY: on the app thread, where it was taken, and given back once.
        unsafe { sys::spdk_put_io_channel(self.channel) };
    }
}

/// Begins a reset of the bdev, which fails all I/O of it that is under way or waits: what its backend may
/// still do with the data comes before the reset's end, for which nobody waits here.
///
/// ENODEV if there is no such bdev, ENOTSUP if its kind knows no reset.
pub(crate) fn end_io(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "reset bdev";
    let bdev = existing(spdk, OPERATION, name)?.as_ptr();
    let io_type = sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_RESET;
    // SAFETY: on the app thread, `bdev` just found.
    if !unsafe { sys::spdk_bdev_io_type_supported(bdev, io_type) } {
        return Err(Error::new(OPERATION, libc::ENOTSUP)
            .with_detail(format!("bdev {name:?} cannot be reset")));
    }
    // A bdev that goes meanwhile goes once the reset has ended and its descriptor is closed.
    let descriptor = Descriptor::open(spdk, OPERATION, &cstr("bdev name", name)?)?;
    // SAFETY: on the app thread, the descriptor just opened.
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
    // SAFETY: on the channel's thread; `on_reset` takes the box, unless the reset is refused.
    let rc = unsafe { sys::spdk_bdev_reset(descriptor, channel, Some(on_reset), raw.cast()) };
    if rc != 0 {
        // SAFETY: SPDK did not take it.
        drop(unsafe { Box::from_raw(raw) });
    }
    check(OPERATION, rc)
}

unsafe extern "C" fn on_reset(io: *mut sys::spdk_bdev_io, _success: bool, raw: *mut c_void) {
    // SAFETY: SPDK gives what `end_io` passed, once, on the same thread, and its own I/O, which is to be
    // freed before the descriptor is closed.
    unsafe {
        sys::spdk_bdev_free_io(io);
        drop(Box::from_raw(raw.cast::<Resetting>()));
    }
}
