//! virtio-blk devices, one bdev each.

use spdk_sys as sys;

use super::{check_bdev, check_made, check_name, remove, unlocked};
use crate::cstr::cstr;
use crate::error::Error;
use crate::runtime::Spdk;

/// Queues that a machine may use, and chooses.
pub const MAX_QUEUES: u32 = 128;

/// Makes a controller and its socket. It takes the bdev for writing, yet SPDK does
/// not keep others from it: whoever calls does.
///
/// ENODEV for an unknown bdev, EBUSY for one that a module claims, EEXIST for a name
/// in use, EINVAL for one that cannot be, EPERM without hugepages or for a path that
/// is too long, EADDRNOTAVAIL if the socket cannot be made.
pub async fn create(spdk: Spdk, name: &str, bdev: &str) -> Result<(), Error> {
    const OPERATION: &str = "create vhost-user-blk controller";
    unlocked(spdk, OPERATION).await?;
    let socket = check_name(spdk, OPERATION, name)?;
    check_bdev(spdk, OPERATION, bdev)?;
    let (c_name, c_bdev) = (cstr("controller name", name)?, cstr("bdev name", bdev)?);
    // SAFETY: on the app thread; SPDK copies the names.
    let rc = unsafe { sys::opi_vhost_blk_create(c_name.as_ptr(), c_bdev.as_ptr()) };
    check_made(OPERATION, &socket, rc)
}

/// Removes a controller and its socket. ENODEV if there is none of that name, EBUSY
/// while a virtual machine is connected.
pub async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    remove(spdk, "delete vhost-user-blk controller", name).await
}
