//! A bdev that is open: it stays in SPDK's list until its descriptor is closed.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

use spdk_sys as sys;

use crate::error::{Error, check};
use crate::runtime::Spdk;

/// Open to look at, without a claim. Stays on the app thread; closed when it is dropped, which is to be soon:
/// a bdev that is being removed waits for it, and is not told.
pub(super) struct Descriptor(*mut sys::spdk_bdev_desc);

impl Descriptor {
    /// Opens the bdev of this name, for `operation`.
    ///
    /// # Errors
    /// SPDK's: ENODEV also for one that is being removed.
    pub(super) fn open(_: Spdk, operation: &'static str, name: &CStr) -> Result<Self, Error> {
        let mut descriptor = null_mut();
        // SAFETY: on the app thread; the name and the output outlive the call; the event callback needs no
        // context.
        let rc = unsafe {
            let output = &mut descriptor;
            sys::spdk_bdev_open_ext(name.as_ptr(), false, Some(ignore_event), null_mut(), output)
        };
        // Not made where nothing was opened: it would close that.
        check(operation, rc).map(|()| Self(descriptor))
    }

    /// The bdev.
    pub(super) fn bdev(&self) -> *mut sys::spdk_bdev {
        // SAFETY: open until it is dropped.
        unsafe { sys::spdk_bdev_desc_get_bdev(self.0) }
    }

    /// For SPDK's functions that want it.
    pub(super) fn as_ptr(&self) -> *mut sys::spdk_bdev_desc {
        self.0
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: opened on this thread and not closed before.
        unsafe { sys::spdk_bdev_close(self.0) };
    }
}

unsafe extern "C" fn ignore_event(
    _: sys::spdk_bdev_event_type,
    _: *mut sys::spdk_bdev,
    _: *mut c_void,
) {
}
