//! Aliases: further names under which a bdev is found wherever a bdev is named.

use spdk_sys as sys;

use super::{check_name, existing};
use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::error::{Error, check};

/// Adds an alias to a bdev. ENODEV if there is no such bdev, EEXIST if the alias is in use. App thread.
pub fn add(spdk: Spdk, bdev: &str, alias: &str) -> Result<(), Error> {
    const OPERATION: &str = "name bdev";
    check_name(spdk, OPERATION, alias)?;
    let c_alias = cstr("bdev name", alias)?;
    let bdev = existing(spdk, OPERATION, bdev)?;
    // SAFETY: runs on the app thread; the bdev was found without an await since; SPDK copies the name.
    let rc = unsafe { sys::spdk_bdev_alias_add(bdev.as_ptr(), c_alias.as_ptr()) };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{alias:?}")))
}

/// Removes an alias from its bdev. Users that opened the bdev by it keep the bdev open. ENODEV if no bdev has the
/// alias, ENOENT if it is the bdev's own name. App thread.
pub fn remove(spdk: Spdk, alias: &str) -> Result<(), Error> {
    const OPERATION: &str = "take name of bdev";
    let c_alias = cstr("bdev name", alias)?;
    let bdev = existing(spdk, OPERATION, alias)?;
    // SAFETY: runs on the app thread; the bdev was found without an await since; the string outlives the call.
    let rc = unsafe { sys::spdk_bdev_alias_del(bdev.as_ptr(), c_alias.as_ptr()) };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{alias:?}")))
}
