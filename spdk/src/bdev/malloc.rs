//! RAM disks in SPDK's own memory.

use spdk_sys as sys;

use super::{check_new, uuid};
use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::error::{Error, check};

/// How to create a RAM disk.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name, unique among bdevs.
    pub name: String,
    /// UUID; `None` lets SPDK generate one.
    pub uuid: Option<[u8; 16]>,
    /// Number of logical blocks, at least one.
    pub num_blocks: u64,
    /// Data bytes of a logical block: a power of two, at least 512.
    pub block_size: u32,
    /// Metadata bytes interleaved after each block's data: 0 or one of [`METADATA_SIZES`].
    pub metadata_size: u32,
}

/// The metadata sizes that SPDK's malloc module supports, in bytes.
pub const METADATA_SIZES: [u32; 5] = [8, 16, 32, 64, 128];

/// Creates a zeroed RAM disk. Blocks the reactor for about as long as writing that much memory takes.
///
/// EINVAL for an invalid size, EEXIST for a name or UUID in use, ENOMEM if SPDK's memory has no contiguous piece of
/// that size.
pub async fn create(spdk: Spdk, options: &Options) -> Result<(), Error> {
    const OPERATION: &str = "create malloc bdev";
    let Options {
        name,
        num_blocks,
        block_size,
        metadata_size,
        ..
    } = options;
    check_new(spdk, OPERATION, name, *num_blocks, *block_size)?;
    if *metadata_size != 0 && !METADATA_SIZES.contains(metadata_size) {
        return Err(Error::new(OPERATION, libc::EINVAL).with_detail(format!(
            "{metadata_size} bytes of metadata: it must be 0 or one of {METADATA_SIZES:?}"
        )));
    }
    let size = u128::from(*num_blocks) * u128::from(*block_size + *metadata_size);
    let no_memory = |error: Error| {
        let largest = crate::memory(spdk).largest_free;
        error.with_detail(format!(
            "{name:?} needs {size} bytes in one piece, and the largest free one of SPDK's memory has \
             {largest}: delete a malloc volume, or start with more mem-mib"
        ))
    };
    // DPDK would first build a table of all pages involved, on the reactor: GiBs of it for impossible sizes.
    if size > u128::from(crate::memory::of_the_machine()) {
        return Err(no_memory(Error::new(OPERATION, libc::ENOMEM)));
    }
    let c_name = cstr("bdev name", name)?;
    // SAFETY: runs on the app thread; name and UUID outlive the call.
    let rc = unsafe {
        sys::opi_bdev_malloc_create(
            c_name.as_ptr(),
            &uuid(options.uuid),
            *num_blocks,
            *block_size,
            *metadata_size,
        )
    };
    check(OPERATION, rc).map_err(|error| match error.errno.0 {
        libc::ENOMEM => no_memory(error),
        _ => error.with_detail(format!("{name:?}")),
    })
}
