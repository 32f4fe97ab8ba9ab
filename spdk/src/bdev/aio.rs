//! Files and kernel block devices, through Linux AIO.

use spdk_sys as sys;

use super::{check_name, delete, lookup, uuid};
use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::error::{Error, check};

/// How to create an AIO bdev.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name, unique among bdevs.
    pub name: String,
    /// UUID; `None` lets SPDK generate one.
    pub uuid: Option<[u8; 16]>,
    /// Path of the file or block device; its size must be a multiple of the block size.
    pub filename: String,
    /// Bytes of a logical block: a power of two, at least 512 and at least the file's own. 0 selects the file's own.
    pub block_size: u32,
    /// Rejects writes.
    pub readonly: bool,
}

/// Opens the file and creates a bdev over it. SPDK opens the file on the reactor, so the caller must have checked
/// that the file exists and that opening it does not block.
///
/// EINVAL for an invalid size or block size (including an empty file), EEXIST for a name or UUID in use, otherwise
/// the errno of open(2).
pub async fn create(spdk: Spdk, options: &Options) -> Result<(), Error> {
    const OPERATION: &str = "create aio bdev";
    let Options { name, filename, .. } = options;
    check_name(spdk, OPERATION, name)?;
    let c_name = cstr("bdev name", name)?;
    let c_filename = cstr("file name", filename)?;
    // SAFETY: runs on the app thread; the strings and the UUID outlive the call.
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
    // SPDK accepts an empty file, but the resulting bdev is useless: undo.
    if lookup(spdk, name)?.is_none_or(|info| info.num_blocks == 0) {
        delete(spdk, name).await?;
        return Err(
            Error::new(OPERATION, libc::EINVAL).with_detail(format!("{filename:?} is empty"))
        );
    }
    Ok(())
}

/// Adopts the file's current size. If the file has become empty, the bdev is removed. EBUSY if the file shrank while
/// the bdev is open.
pub async fn rescan(_: Spdk, name: &str) -> Result<(), Error> {
    let c_name = cstr("bdev name", name)?;
    // SAFETY: runs on the app thread; the name outlives the call.
    let rc = unsafe { sys::opi_bdev_aio_rescan(c_name.as_ptr()) };
    check("rescan aio bdev", rc).map_err(|error| error.with_detail(format!("{name:?}")))
}
