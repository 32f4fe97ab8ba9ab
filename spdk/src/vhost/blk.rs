//! virtio-blk devices, one bdev each.

use spdk_sys as sys;

use super::{check_bdev, check_made, check_name, remove, socket_path, unlocked};
use crate::cstr::cstr;
use crate::error::Error;
use crate::runtime::Spdk;

/// Queues that a machine may use where nothing less is said.
pub const MAX_QUEUES: u32 = 128;

/// A controller to make.
#[derive(Debug, Clone)]
pub struct Options {
    /// Unique among controllers, and the socket's name.
    pub name: String,
    /// The bdev that it shows.
    pub bdev: String,
    /// Queues that a machine may use, 1 to [`MAX_QUEUES`].
    pub queues: u32,
}

/// Makes a controller and its socket. It takes the bdev for writing, yet SPDK does
/// not keep others from it: whoever calls does.
///
/// ENODEV for an unknown bdev, EBUSY for one that a module claims, EEXIST for a name
/// in use, EINVAL for one that cannot be, EPERM without hugepages or for a path that
/// is too long, EADDRNOTAVAIL if the socket cannot be made.
pub async fn create(spdk: Spdk, options: &Options) -> Result<(), Error> {
    const OPERATION: &str = "create vhost-user-blk controller";
    let Options { name, bdev, .. } = options;
    unlocked(spdk, OPERATION).await?;
    let socket = check_name(spdk, OPERATION, name)?;
    check_bdev(spdk, OPERATION, bdev)?;
    let (c_name, c_bdev) = (cstr("controller name", name)?, cstr("bdev name", bdev)?);
    // SAFETY: on the app thread; SPDK copies the names.
    let rc = unsafe { sys::opi_vhost_blk_create(c_name.as_ptr(), c_bdev.as_ptr()) };
    check_made(OPERATION, &socket, rc)?;
    let limited = limit_queues(spdk, name, options.queues);
    if limited.is_err() {
        remove(spdk, OPERATION, name).await?;
    }
    limited
}

/// Limits the queues of machines that connect from now on.
///
/// EINVAL for 0 or more than [`MAX_QUEUES`], or an unknown controller.
pub fn limit_queues(_: Spdk, name: &str, queues: u32) -> Result<(), Error> {
    const OPERATION: &str = "limit queues";
    let socket = cstr("socket path", &socket_path(name))?;
    // SAFETY: the path outlives the call.
    let rc = unsafe { sys::rte_vhost_driver_set_max_queue_num(socket.as_ptr(), queues) };
    if rc == 0 && queues > 0 {
        return Ok(());
    }
    Err(Error::new(OPERATION, libc::EINVAL)
        .with_detail(format!("{queues} queues of {name:?}: 1 to {MAX_QUEUES}")))
}

/// Removes a controller and its socket. ENODEV if there is none of that name, EBUSY
/// while a virtual machine is connected.
pub async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    remove(spdk, "delete vhost-user-blk controller", name).await
}
