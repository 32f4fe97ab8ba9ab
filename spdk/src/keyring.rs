//! Keys that SPDK refers to by name, held in memory alone: TLS's pre-shared keys.

use spdk_sys as sys;

use crate::cstr::cstr;
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// Puts a key into SPDK's keyring, which copies it and wipes its copy when the key
/// is removed. A TLS key is in interchange form, without a newline.
///
/// EEXIST for a name in use, EINVAL for a name with a colon in it or an empty key.
pub fn add(_: Spdk, name: &str, key: &[u8]) -> Result<(), Error> {
    const OPERATION: &str = "add key";
    if key.is_empty() || name.is_empty() || name.contains(':') {
        return Err(Error::new(OPERATION, libc::EINVAL).with_detail(format!(
            "key {name:?} must not be empty, nor its name, which has no colon"
        )));
    }
    let c_name = cstr("key name", name)?;
    // SAFETY: on the app thread; name and key outlive the call.
    let rc = unsafe { sys::opi_keyring_add(c_name.as_ptr(), key.as_ptr().cast(), key.len()) };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{name:?}")))
}

/// Takes a key out of the keyring. Connections that use it stay, and cannot be made
/// anew. ENOKEY if there is none of that name.
pub fn remove(_: Spdk, name: &str) -> Result<(), Error> {
    let c_name = cstr("key name", name)?;
    // SAFETY: on the app thread; the name outlives the call.
    let rc = unsafe { sys::opi_keyring_remove(c_name.as_ptr()) };
    check("remove key", rc).map_err(|error| error.with_detail(format!("{name:?}")))
}
