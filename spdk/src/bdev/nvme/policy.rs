//! Multipath policy: how I/O is spread over a controller's paths.

use spdk_sys as sys;

use super::namespaces;
use crate::app_thread::Spdk;
use crate::completion::{Status, call};
use crate::cstr::cstr;
use crate::error::{Error, check};

/// Switches the controller's namespaces to active-active multipath: I/O goes to the path with the fewest outstanding
/// commands. The default is active-passive. For controllers with [`Multipath::Multipath`](super::Multipath); must be
/// called again for namespaces that appear later.
///
/// ENODEV for an unknown controller.
pub async fn use_all_paths(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "use all NVMe paths";
    let namespaces = namespaces(spdk, name)?.into_iter();
    for namespace in namespaces.filter(|namespace| !namespace.over_all_paths) {
        let bdev = cstr("bdev name", &namespace.bdev)?;
        let status = call::<Status>(OPERATION, |callback, argument| {
            // SAFETY: on the app thread; the name outlives the call; the callback reclaims the argument exactly once,
            // whatever the outcome.
            unsafe {
                sys::spdk_bdev_nvme_set_multipath_policy(
                    bdev.as_ptr(),
                    sys::spdk_bdev_nvme_multipath_policy_BDEV_NVME_MP_POLICY_ACTIVE_ACTIVE,
                    sys::spdk_bdev_nvme_multipath_selector_BDEV_NVME_MP_SELECTOR_QUEUE_DEPTH,
                    u32::MAX,
                    callback,
                    argument,
                );
            }
            0
        })
        .await?;
        match check(OPERATION, status) {
            // The namespace's bdev was removed since it was listed.
            Err(error) if error.errno.0 == libc::ENODEV => {}
            result => result.map_err(|error| error.with_detail(format!("{:?}", namespace.bdev)))?,
        }
    }
    Ok(())
}
