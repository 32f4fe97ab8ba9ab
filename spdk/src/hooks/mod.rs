//! The hooks through which SPDK asks the gates (`spdk-gate`). One file a door.
//!
//! `spdk/changes/` declares each hook as a weak symbol and calls it where it is linked, so that SPDK's
//! own programs link without. A hook takes what C has, makes safe values of it, and asks the gate. It
//! runs on a reactor: it neither allocates, nor waits, nor logs, and it cannot panic.

use std::ffi::CStr;

use spdk_sys as sys;

/// How many changes of `spdk/changes/` the SPDK that is linked was built with; 0 for one that the user
/// brought as it is.
pub fn changes() -> usize {
    sys::SPDK_CHANGES.len()
}

/// Their names, in the order in which they were applied.
pub fn change_names() -> impl Iterator<Item = &'static str> {
    sys::SPDK_CHANGES
        .iter()
        .map(|name: &&'static CStr| name.to_str().unwrap_or_default())
}
