//! Encrypted bdevs: AES-XTS over another bdev, block by block.

use std::ffi::CString;
use std::fmt;

use spdk_sys as sys;

use super::stand_in::forget as forget_bdev;
use super::{REMOVAL_LIMIT, check_name, claimed, claimed_by, existing};
use crate::app_thread::Spdk;
use crate::completion::{Status, call_within};
use crate::cstr::cstr;
use crate::error::{Error, check};

/// An AES-XTS key with both halves: 32 bytes for AES_XTS_128, 64 for AES_XTS_256. Wiped when dropped; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    /// Validates a key. EINVAL for another length, and for identical halves: these make the tweak predictable, and
    /// SPDK refuses them.
    pub fn new(key: Vec<u8>) -> Result<Self, Error> {
        let key = Self(key);
        let reason = match key.0.len() {
            32 | 64 if key.halves().0 == key.halves().1 => "its halves are the same".to_owned(),
            32 | 64 => return Ok(key),
            length => format!("it has {length} bytes, and must have 32 or 64"),
        };
        Err(Error::new("take encryption key", libc::EINVAL).with_detail(reason))
    }

    fn halves(&self) -> (&[u8], &[u8]) {
        self.0.split_at(self.0.len() / 2)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// How to create an encrypted bdev.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name, unique among bdevs.
    pub name: String,
    /// The bdev that holds the ciphertext. The encrypted bdev claims it exclusively.
    pub base: String,
    /// The key of all blocks.
    pub key: Key,
}

/// SPDK's product name of this kind (see [`Info::product`](super::Info)).
pub const PRODUCT: &str = "crypto";

/// Creates an encrypted bdev. ENODEV for an unknown base, EBUSY if the base is claimed, EEXIST if the name is in
/// use.
pub async fn create(spdk: Spdk, options: &Options) -> Result<(), Error> {
    const OPERATION: &str = "create encrypted bdev";
    let Options { name, base, key } = options;
    check_name(spdk, OPERATION, name)?;
    // SPDK itself accepts a base that does not exist yet, and waits for it.
    let found = existing(spdk, OPERATION, base)?;
    // SAFETY: runs on the app thread; the bdev was found without an await since.
    if let Some(owner) = unsafe { claimed_by(found.as_ptr()) } {
        return Err(claimed(OPERATION, base, &owner));
    }
    let (c_name, c_base) = (cstr("bdev name", name)?, cstr("base bdev", base)?);
    let (first, second) = key.halves();
    let (first, second) = (Hex::new(first), Hex::new(second));
    // SAFETY: runs on the app thread; the strings outlive the call, which copies them.
    let rc = unsafe {
        sys::opi_bdev_crypto_create(
            c_name.as_ptr(),
            c_base.as_ptr(),
            first.0.as_ptr(),
            second.0.as_ptr(),
        )
    };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{name:?} on {base:?}")))
}

/// Deletes an encrypted bdev and its key; the base is unchanged. ENODEV if there is no bdev of that name, EBUSY if a
/// module claims it.
pub async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "delete encrypted bdev";
    let bdev = existing(spdk, OPERATION, name)?;
    // SAFETY: runs on the app thread; the bdev was found without an await since.
    if let Some(owner) = unsafe { claimed_by(bdev.as_ptr()) } {
        return Err(claimed(OPERATION, name, &owner));
    }
    unregister(spdk, OPERATION, name).await
}

/// Makes SPDK forget an encrypted bdev that was removed together with its base, and its key. Otherwise SPDK
/// recreates it once the base is back. EBUSY if another bdev has the name, or a module claims it.
pub async fn forget(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "forget encrypted bdev";
    forget_bdev(spdk, OPERATION, c"crypto", name, async || {
        delete(spdk, name).await
    })
    .await
}

/// Unregisters a bdev of the crypto module, which gives up its name and its key.
async fn unregister(spdk: Spdk, operation: &'static str, name: &str) -> Result<(), Error> {
    let c_name = cstr("bdev name", name)?;
    let status = call_within::<Status>(spdk, REMOVAL_LIMIT, operation, |callback, argument| {
        // SAFETY: on the app thread; SPDK copies the name; the callback takes the
        // argument back, once.
        unsafe { sys::opi_bdev_crypto_delete(c_name.as_ptr(), callback, argument) };
        0
    })
    .await?;
    check(operation, status).map_err(|error| error.with_detail(format!("{name:?}")))
}

/// Half a key in hexadecimal, SPDK's format. Wiped when dropped.
struct Hex(CString);

impl Hex {
    fn new(bytes: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = Vec::with_capacity(bytes.len() * 2 + 1);
        for byte in bytes {
            text.push(DIGITS[usize::from(byte >> 4)]);
            text.push(DIGITS[usize::from(byte & 15)]);
        }
        // Capacity for the terminator is reserved, so CString::new does not reallocate and leave a copy behind.
        Self(CString::new(text).unwrap_or_default())
    }
}

impl Drop for Hex {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        wipe(&mut bytes);
    }
}

/// Overwrites a secret; black_box keeps the compiler from removing the write as a dead store.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_two_different_halves_of_16_or_32_bytes() {
        let key = |length: u8| Key::new((0..length).collect());
        assert!(key(32).is_ok() && key(64).is_ok());
        for length in [0, 16, 31, 48, 65] {
            assert!(key(length).is_err(), "{length}");
        }
        assert!(Key::new(vec![1; 32]).is_err());
    }

    #[test]
    fn a_key_does_not_show() {
        let key = Key::new((0..32).collect()).expect("a valid key");
        assert_eq!(format!("{key:?}"), "Key(32 bytes)");
    }

    #[test]
    fn hexadecimal_is_lower_case_and_whole() {
        assert_eq!(Hex::new(&[0x00, 0x0f, 0xa5]).0.to_bytes(), b"000fa5");
    }
}
