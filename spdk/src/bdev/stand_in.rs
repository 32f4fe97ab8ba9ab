//! Makes an SPDK module forget a bdev that was removed together with its base. Otherwise the module recreates the
//! bdev once the base is back; it drops a name from its list only when it deletes a bdev of that name.

use std::ffi::CStr;
use std::time::Duration;

use spdk_sys as sys;

use super::lookup;
use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::deadline::within;
use crate::error::{Error, check};
use crate::timer::sleep;

/// How long a bdev in removal may keep its name, and the interval between two lookups.
const GOING_LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Forgets a bdev of `module`. `delete` deletes the bdev of that name, and returns ENODEV if there is none. EBUSY if
/// another bdev has the name, or a module claims it.
pub(super) async fn forget(
    spdk: Spdk,
    operation: &'static str,
    module: &CStr,
    name: &str,
    delete: impl AsyncFn() -> Result<(), Error>,
) -> Result<(), Error> {
    let forgotten = async {
        while lookup(spdk, name)?.is_some() {
            // Either the bdev is still in removal, keeping its name until its users close it, or it was recreated.
            match delete().await {
                Err(error) if error.errno.0 == libc::ENODEV => sleep(spdk, PAUSE).await,
                result => return result,
            }
        }
        let c_name = cstr("bdev name", name)?;
        // SAFETY: runs on the app thread; both strings outlive the call; SPDK copies the name, and only compares
        // the module's.
        let rc = unsafe { sys::opi_bdev_stand_in(module.as_ptr(), c_name.as_ptr()) };
        check(operation, rc).map_err(|error| error.with_detail(format!("{name:?}")))?;
        // No await in between, so nobody can open the stand-in.
        delete().await
    };
    let in_use = || Error::new(operation, libc::EBUSY).with_detail(format!("{name:?} is in use"));
    within(spdk, GOING_LIMIT, forgotten)
        .await
        .unwrap_or_else(|| Err(in_use()))
}
