//! Files and kernel block devices, through Linux AIO.

use spdk_sys as sys;

use super::{check_name, delete, lookup, uuid};
use crate::cstr::cstr;
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// A file or block device to use.
#[derive(Debug, Clone)]
pub struct Options {
    /// Unique among bdevs.
    pub name: String,
    /// SPDK makes one where none is given.
    pub uuid: Option<[u8; 16]>,
    /// The file's path; its size must be a multiple of the block size.
    pub filename: String,
    /// Bytes of a logical block: a power of two, 512 or more, at least that of
    /// the file. 0 takes the file's own.
    pub block_size: u32,
    /// No writes.
    pub readonly: bool,
}

/// Opens the file and makes a bdev of it. SPDK opens it on the reactor: whoever
/// calls has seen that it is there and that opening it does not wait.
///
/// EINVAL for a size or block size that cannot be (an empty file too), EEXIST for
/// a name or UUID in use, else the errno of open(2).
pub async fn create(spdk: Spdk, options: &Options) -> Result<(), Error> {
    const OPERATION: &str = "create aio bdev";
    let Options { name, filename, .. } = options;
    check_name(spdk, OPERATION, name)?;
    let c_name = cstr("bdev name", name)?;
    let c_filename = cstr("file name", filename)?;
    // SAFETY: on the app thread; the strings and the UUID outlive the call.
    let rc = unsafe {
        sys::opi_bdev_aio_create(
            c_name.as_ptr(),
            &uuid(options.uuid),
            c_filename.as_ptr(),
            options.block_size,
            options.readonly,
        )
    };
    check(OPERATION, rc).map_err(|error| {
        error.with_detail(format!(
            "{name:?} on {filename:?} with blocks of {} bytes",
            options.block_size
        ))
    })?;
    // SPDK takes an empty file, and nothing can be done with the result.
    if lookup(spdk, name)?.is_none_or(|info| info.num_blocks == 0) {
        delete(spdk, name).await?;
        return Err(
            Error::new(OPERATION, libc::EINVAL).with_detail(format!("{filename:?} is empty"))
        );
    }
    Ok(())
}

/// Has the bdev take over the size that its file now has; a file that has become
/// empty takes the bdev away. EBUSY if it shrank while it is open.
pub async fn rescan(_: Spdk, name: &str) -> Result<(), Error> {
    let c_name = cstr("bdev name", name)?;
    // SAFETY: on the app thread; the name outlives the call.
    let rc = unsafe { sys::opi_bdev_aio_rescan(c_name.as_ptr()) };
    check("rescan aio bdev", rc).map_err(|error| error.with_detail(format!("{name:?}")))
}
