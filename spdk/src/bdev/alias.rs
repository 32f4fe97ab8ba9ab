//! Further names of a bdev: it is found by each of them wherever a bdev is named.

use spdk_sys as sys;

use super::{check_name, existing};
use crate::cstr::cstr;
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// Gives a bdev a further name. ENODEV if there is no such bdev, EEXIST for a name in
/// use.
pub fn add(spdk: Spdk, bdev: &str, alias: &str) -> Result<(), Error> {
    const OPERATION: &str = "name bdev";
    check_name(spdk, OPERATION, alias)?;
    let c_alias = cstr("bdev name", alias)?;
    let bdev = existing(spdk, OPERATION, bdev)?;
    // SAFETY: on the app thread, the bdev just found; SPDK copies the name.
    let rc = unsafe { sys::spdk_bdev_alias_add(bdev.as_ptr(), c_alias.as_ptr()) };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{alias:?}")))
}

/// Takes a further name away from its bdev; who has opened the bdev by it keeps it open.
/// ENODEV if no bdev has it, ENOENT if it is the bdev's own name.
pub fn remove(spdk: Spdk, alias: &str) -> Result<(), Error> {
    const OPERATION: &str = "take name of bdev";
    let c_alias = cstr("bdev name", alias)?;
    let bdev = existing(spdk, OPERATION, alias)?;
    // SAFETY: on the app thread, the bdev just found; the string outlives the call.
    let rc = unsafe { sys::spdk_bdev_alias_del(bdev.as_ptr(), c_alias.as_ptr()) };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{alias:?}")))
}
