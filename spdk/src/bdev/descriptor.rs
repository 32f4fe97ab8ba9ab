//! An open bdev, which stays in SPDK's list until its descriptor is closed.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::error::{Error, check};

/// A bdev opened for inspection, without a claim; closed on drop. Stays on the app thread. Hold it only briefly: the
/// removal of the bdev waits for it, and remove events are ignored.
pub(super) struct Descriptor(*mut sys::spdk_bdev_desc);

impl Descriptor {
    /// Opens the named bdev for `operation`.
    ///
    /// # Errors
    /// SPDK's errors: ENODEV also if the bdev is being removed.
    pub(super) fn open(_: Spdk, operation: &'static str, name: &CStr) -> Result<Self, Error> {
        let mut descriptor = null_mut();
        // SAFETY: runs on the app thread; the name and the output outlive the call; the event callback ignores its
        // null context.
        let rc = unsafe {
            let output = &mut descriptor;
            sys::spdk_bdev_open_ext(name.as_ptr(), false, Some(ignore_event), null_mut(), output)
        };
        // No `Descriptor` on failure: dropping one would close a descriptor that was never opened.
        check(operation, rc).map(|()| Self(descriptor))
    }

    /// Returns the bdev.
    pub(super) fn bdev(&self) -> *mut sys::spdk_bdev {
        // SAFETY: the descriptor is open for the lifetime of `self`.
        unsafe { sys::spdk_bdev_desc_get_bdev(self.0) }
    }

    /// Returns the descriptor for SPDK's functions.
    pub(super) fn as_ptr(&self) -> *mut sys::spdk_bdev_desc {
        self.0
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: opened on this thread, and closed only here.
        unsafe { sys::spdk_bdev_close(self.0) };
    }
}

unsafe extern "C" fn ignore_event(
    _: sys::spdk_bdev_event_type,
    _: *mut sys::spdk_bdev,
    _: *mut c_void,
) {
}
