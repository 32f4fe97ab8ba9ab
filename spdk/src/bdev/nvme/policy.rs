//! How I/O is spread over the paths that a controller has at once.

use spdk_sys as sys;

use super::namespaces;
use crate::app_thread::Spdk;
use crate::completion::{Status, call};
use crate::cstr::cstr;
use crate::error::{Error, check};

/// Has I/O to a controller's namespaces go over all of its paths at once, to the one with the fewest
/// commands outstanding; else it goes over one for as long as that works. For controllers with
/// [`Multipath::Multipath`](super::Multipath); to be called again for namespaces that come later.
///
/// ENODEV for an unknown controller.
pub async fn use_all_paths(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "use all NVMe paths";
    let namespaces = namespaces(spdk, name)?.into_iter();
    for namespace in namespaces.filter(|namespace| !namespace.over_all_paths) {
        let bdev = cstr("bdev name", &namespace.bdev)?;
        let status = call::<Status>(OPERATION, |callback, argument| {
            // SAFETY: on the app thread; the name outlives the call; the callback takes the argument
            // back, once, whatever the outcome.
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
            // It has gone since it was listed.
            Err(error) if error.errno.0 == libc::ENODEV => {}
            result => result.map_err(|error| error.with_detail(format!("{:?}", namespace.bdev)))?,
        }
    }
    Ok(())
}
