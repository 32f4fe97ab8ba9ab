//! Keys that SPDK refers to by name, held in memory only: PSKs of TLS, and DH-HMAC-CHAP keys.

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::error::{Error, check};

/// Adds a key to SPDK's keyring, which copies it and wipes the copy on removal. A TLS key is in interchange format,
/// without a newline.
///
/// EEXIST if the name is in use, EINVAL if the key is empty, or if the name is empty or has a colon. App thread.
pub fn add(_: Spdk, name: &str, key: &[u8]) -> Result<(), Error> {
    const OPERATION: &str = "add key";
    if key.is_empty() || name.is_empty() || name.contains(':') {
        return Err(Error::new(OPERATION, libc::EINVAL).with_detail(format!(
            "key {name:?} must not be empty, nor its name, which has no colon"
        )));
    }
    let c_name = cstr("key name", name)?;
    // SAFETY: runs on the app thread; name and key are valid for the lengths passed and outlive the call, which
    // copies both.
    let rc = unsafe { sys::opi_keyring_add(c_name.as_ptr(), key.as_ptr().cast(), key.len()) };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{name:?}")))
}

/// Removes a key from the keyring. Connections that use it continue but cannot be established again. ENOKEY if there
/// is no key of that name.
pub fn remove(_: Spdk, name: &str) -> Result<(), Error> {
    let c_name = cstr("key name", name)?;
    // SAFETY: runs on the app thread; the name is NUL-terminated and outlives the call.
    let rc = unsafe { sys::opi_keyring_remove(c_name.as_ptr()) };
    check("remove key", rc).map_err(|error| error.with_detail(format!("{name:?}")))
}
