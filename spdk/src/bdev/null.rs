//! Null devices: they take every write and read as whatever the buffer held.

use spdk_sys as sys;

use super::{check_new, existing, set_num_blocks, uuid};
use crate::cstr::{cstr, string};
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// A null device to make.
#[derive(Debug, Clone)]
pub struct Options {
    /// Unique among bdevs.
    pub name: String,
    /// SPDK makes one where none is given.
    pub uuid: Option<[u8; 16]>,
    /// Logical blocks, at least one.
    pub num_blocks: u64,
    /// Bytes of a logical block: a power of two, 512 or more.
    pub block_size: u32,
}

/// Makes a null device. EINVAL for a size that cannot be, EEXIST for a name or
/// UUID in use.
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
    // SAFETY: on the app thread; name and UUID outlive the call.
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

/// Gives a null device another number of blocks; whoever has it open is told.
///
/// ENODEV if there is none of that name, EINVAL for no blocks or another kind of
/// bdev, EBUSY if it would shrink while it is open.
pub async fn resize(spdk: Spdk, name: &str, num_blocks: u64) -> Result<(), Error> {
    const OPERATION: &str = "resize null bdev";
    let bdev = existing(spdk, OPERATION, name)?.as_ptr();
    // SAFETY: on the app thread, `bdev` just found.
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
