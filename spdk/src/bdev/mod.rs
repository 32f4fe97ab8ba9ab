//! Block devices: one file a kind, and here what all kinds have.
//!
//! Only names cross this API. A pointer to a bdev is valid until the app thread
//! next returns to its reactor, so none is kept across an await.

pub mod aio;
pub mod alias;
pub mod crypto;
pub mod delay;
mod descriptor;
mod end_io;
mod errors;
mod histogram;
pub mod malloc;
pub mod null;
pub mod nvme;
mod presence;
pub mod qos;
mod stand_in;
mod stats;
mod survey;

use std::ptr::NonNull;
use std::time::Duration;

use spdk_sys as sys;

use crate::completion::{Status, call_within};
use crate::cstr::{cstr, string};
use crate::error::{Error, check};
use crate::runtime::Spdk;

pub(crate) use end_io::end_io;
pub use errors::{IoErrors, device_errors, failed};
pub use histogram::Latencies;
pub use presence::{Presence, leave, look_after, losses};
pub(crate) use presence::{Watch, watch};
pub use stats::{Stats, stats};
pub use survey::{Counters, Most, survey};

/// What a bdev is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its name, unique in the process.
    pub name: String,
    /// What SPDK calls its kind: "Malloc disk".
    pub product: String,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Logical blocks.
    pub num_blocks: u64,
    /// Bytes of metadata with each block.
    pub metadata_size: u32,
    /// Its UUID; SPDK makes one where none was given.
    pub uuid: [u8; 16],
    /// The module that has it for itself, if one has.
    pub claimed_by: Option<String>,
    /// What can be done to it.
    pub io: IoTypes,
}

/// The I/O types that a bdev supports, beside reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as SPDK's I/O types are")]
pub struct IoTypes {
    pub write: bool,
    pub unmap: bool,
    pub flush: bool,
    pub reset: bool,
    pub write_zeroes: bool,
    pub copy: bool,
    pub compare: bool,
    pub abort: bool,
}

/// The bdev of that name or alias, if there is one. SPDK's own alias, the UUID, does
/// not count: who keeps users of a bdev apart by its name would not know it again.
pub fn lookup(spdk: Spdk, name: &str) -> Result<Option<Info>, Error> {
    let Some(bdev) = find(spdk, name)? else {
        return Ok(None);
    };
    let bdev = bdev.as_ptr();
    // SAFETY: on the app thread, and `bdev` was found without an await since.
    let info = unsafe {
        let supports = |io_type| sys::spdk_bdev_io_type_supported(bdev, io_type);
        Info {
            name: string(sys::spdk_bdev_get_name(bdev)),
            product: string(sys::spdk_bdev_get_product_name(bdev)),
            block_size: sys::spdk_bdev_get_block_size(bdev),
            num_blocks: sys::spdk_bdev_get_num_blocks(bdev),
            metadata_size: sys::spdk_bdev_get_md_size(bdev),
            uuid: (*sys::spdk_bdev_get_uuid(bdev)).u.raw,
            claimed_by: claimed_by(bdev),
            io: IoTypes {
                write: supports(sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_WRITE),
                unmap: supports(sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_UNMAP),
                flush: supports(sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_FLUSH),
                reset: supports(sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_RESET),
                write_zeroes: supports(sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_WRITE_ZEROES),
                copy: supports(sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_COPY),
                compare: supports(sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_COMPARE),
                abort: supports(sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_ABORT),
            },
        }
    };
    Ok(Some(info))
}

/// The names of all bdevs, in the order of their registration.
pub fn names(_: Spdk) -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: on the app thread, where alone bdevs come and go, and without an
    // await in between: every pointer stays valid through the walk.
    unsafe {
        let mut bdev = sys::spdk_bdev_first();
        while !bdev.is_null() {
            names.push(string(sys::spdk_bdev_get_name(bdev)));
            bdev = sys::spdk_bdev_next(bdev);
        }
    }
    names
}

/// How long the removal of a bdev is waited for; the reactors, which end its channels, need a fraction of it.
const REMOVAL_LIMIT: Duration = Duration::from_secs(5);

/// Removes a malloc, null or aio bdev and returns when it is gone.
///
/// ENODEV if there is none of that name, EBUSY if a module claims it, EINVAL if
/// it is of a kind that is removed otherwise, ETIMEDOUT if it has not gone in time.
pub async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "delete bdev";
    let bdev = existing(spdk, OPERATION, name)?.as_ptr();
    // SAFETY: on the app thread, `bdev` just found.
    let module = unsafe { string(sys::spdk_bdev_get_module_name(bdev)) };
    if !["aio", "malloc", "null"].contains(&module.as_str()) {
        return Err(Error::new(OPERATION, libc::EINVAL)
            .with_detail(format!("{name:?} belongs to the {module} module")));
    }
    // SAFETY: as above.
    if let Some(owner) = unsafe { claimed_by(bdev) } {
        return Err(claimed(OPERATION, name, &owner));
    }
    let status = call_within::<Status>(spdk, REMOVAL_LIMIT, OPERATION, |callback, argument| {
        // SAFETY: as above; the callback takes the argument back, once.
        unsafe { sys::opi_bdev_unregister(bdev, callback, argument) };
        0
    })
    .await?;
    check(OPERATION, status).map_err(|error| error.with_detail(format!("{name:?}")))
}

/// Gives a bdev another size, in blocks, while it may be in use.
///
/// EBUSY if it would shrink and is open.
fn set_num_blocks(
    spdk: Spdk,
    operation: &'static str,
    name: &str,
    num_blocks: u64,
) -> Result<(), Error> {
    let bdev = existing(spdk, operation, name)?;
    // SAFETY: on the app thread, `bdev` just found.
    let rc = unsafe { sys::opi_bdev_set_num_blocks(bdev.as_ptr(), num_blocks) };
    check(operation, rc).map_err(|error| {
        error.with_detail(format!(
            "{name:?} is in use and cannot shrink to {num_blocks} blocks"
        ))
    })
}

pub(crate) fn find(_: Spdk, name: &str) -> Result<Option<NonNull<sys::spdk_bdev>>, Error> {
    Ok(by_any_name(name)?.filter(|bdev| {
        // SAFETY: just found; name and UUID are the bdev's own.
        let (own_name, uuid) = unsafe {
            let bdev = bdev.as_ptr();
            (
                string(sys::spdk_bdev_get_name(bdev)),
                (*sys::spdk_bdev_get_uuid(bdev)).u.raw,
            )
        };
        own_name == name || uuid_text(&uuid) != name
    }))
}

/// Who has this name, be it by its UUID: on the app thread.
fn by_any_name(name: &str) -> Result<Option<NonNull<sys::spdk_bdev>>, Error> {
    let c_name = cstr("bdev name", name)?;
    // SAFETY: on the app thread; `c_name` outlives the call.
    Ok(NonNull::new(unsafe {
        sys::spdk_bdev_get_by_name(c_name.as_ptr())
    }))
}

/// The own name of the bdev that SPDK finds by this name, alias or UUID.
pub fn own_name(_: Spdk, name: &str) -> Result<Option<String>, Error> {
    let found = by_any_name(name)?;
    // SAFETY: just found; the name is the bdev's own.
    Ok(found.map(|bdev| unsafe { string(sys::spdk_bdev_get_name(bdev.as_ptr())) }))
}

/// The bdev that has this UUID.
pub(crate) fn of_uuid(spdk: Spdk, uuid: &[u8; 16]) -> Result<Option<String>, Error> {
    own_name(spdk, &uuid_text(uuid))
}

/// A UUID as SPDK writes it, for a further name of the bdev.
fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = uuid.map(|byte| format!("{byte:02x}")).concat();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

/// The bdev, or ENODEV of `operation`. Not to be kept across an await.
pub(crate) fn existing(
    spdk: Spdk,
    operation: &'static str,
    name: &str,
) -> Result<NonNull<sys::spdk_bdev>, Error> {
    find(spdk, name)?.ok_or_else(|| {
        Error::new(operation, libc::ENODEV).with_detail(format!("there is no bdev {name:?}"))
    })
}

/// # Safety
/// On the app thread; `bdev` was found without an await since.
pub(crate) unsafe fn claimed_by(bdev: *const sys::spdk_bdev) -> Option<String> {
    // SAFETY: the caller's contract; the name is the module's, of static life.
    unsafe {
        let owner = sys::opi_bdev_claimed_by(bdev);
        (!owner.is_null()).then(|| string(owner))
    }
}

pub(crate) fn claimed(operation: &'static str, name: &str, owner: &str) -> Error {
    Error::new(operation, libc::EBUSY).with_detail(format!("bdev {name:?} is in use by {owner}"))
}

/// What a new bdev of any kind must meet, before SPDK allocates for it.
fn check_new(
    spdk: Spdk,
    operation: &'static str,
    name: &str,
    num_blocks: u64,
    block_size: u32,
) -> Result<(), Error> {
    let invalid = |detail: String| Err(Error::new(operation, libc::EINVAL).with_detail(detail));
    check_name(spdk, operation, name)?;
    if num_blocks == 0 {
        return invalid("a bdev needs at least one block".to_owned());
    }
    if block_size < 512 || !block_size.is_power_of_two() {
        return invalid(format!(
            "a block of {block_size} bytes: it must be a power of two, 512 or more"
        ));
    }
    if num_blocks
        .checked_mul(block_size.into())
        .is_none_or(|size| size > i64::MAX.cast_unsigned())
    {
        return invalid(format!(
            "{num_blocks} blocks of {block_size} bytes are more than 2^63 - 1 bytes"
        ));
    }
    Ok(())
}

fn check_name(spdk: Spdk, operation: &'static str, name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::new(operation, libc::EINVAL).with_detail("the name is empty"));
    }
    if find(spdk, name)?.is_some() {
        return Err(Error::new(operation, libc::EEXIST)
            .with_detail(format!("there is a bdev {name:?} already")));
    }
    Ok(())
}

/// All zero has SPDK make one.
fn uuid(uuid: Option<[u8; 16]>) -> sys::spdk_uuid {
    sys::spdk_uuid {
        u: sys::spdk_uuid__bindgen_ty_1 {
            raw: uuid.unwrap_or_default(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_spdk_does() {
        let uuid = *b"\x1b\x4e\x28\xba\x2f\xa1\x11\xd2\x88\x3f\xb9\xa7\x61\xbd\xe3\xfb";
        assert_eq!(uuid_text(&uuid), "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb");
    }
}
