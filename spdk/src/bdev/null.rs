//! Null devices: writes are discarded, and reads leave the buffer as it is.

use spdk_sys as sys;

use super::{check_new, existing, set_num_blocks, uuid};
use crate::app_thread::Spdk;
use crate::cstr::{cstr, string};
use crate::error::{Error, check};

/// How to create a null device.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name, unique among bdevs.
    pub name: String,
    /// UUID; `None` lets SPDK generate one.
    pub uuid: Option<[u8; 16]>,
    /// Number of logical blocks, at least one.
    pub num_blocks: u64,
    /// Bytes of a logical block: a power of two, at least 512.
    pub block_size: u32,
}

/// Creates a null device. EINVAL for an invalid size, EEXIST for a name or UUID in use.
pub async fn create(spdk: Spdk, options: &Options) -> Result<(), Error> {
    const OPERATION: &str = "create null bdev";
    let Options {
        name,
        num_blocks,
        block_size,
        ..
    } = options;
    check_new(spdk, OPERATION, name, *num_blocks, *block_size)?;
    let c_name = cstr("bdev name", name)?;
    // SAFETY: runs on the app thread; name and UUID outlive the call.
    let rc = unsafe {
        sys::opi_bdev_null_create(
            c_name.as_ptr(),
            &uuid(options.uuid),
            *num_blocks,
            *block_size,
        )
    };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{name:?}")))
}

/// Resizes a null device, in blocks; its users are notified.
///
/// ENODEV if there is no bdev of that name, EINVAL for 0 blocks or another kind of bdev, EBUSY if it would shrink
/// while open.
pub async fn resize(spdk: Spdk, name: &str, num_blocks: u64) -> Result<(), Error> {
    const OPERATION: &str = "resize null bdev";
    let bdev = existing(spdk, OPERATION, name)?.as_ptr();
    // SAFETY: runs on the app thread; the bdev was found without an await since.
    let (module, block_size) = unsafe {
        (
            string(sys::spdk_bdev_get_module_name(bdev)),
            sys::spdk_bdev_get_block_size(bdev),
        )
    };
    let fits = num_blocks
        .checked_mul(block_size.into())
        .is_some_and(|size| size > 0 && size <= i64::MAX.cast_unsigned());
    if module != "null" || !fits {
        return Err(Error::new(OPERATION, libc::EINVAL).with_detail(format!(
            "{name:?} of the {module} module cannot have {num_blocks} blocks of {block_size} bytes"
        )));
    }
    set_num_blocks(spdk, OPERATION, name, num_blocks)
}
