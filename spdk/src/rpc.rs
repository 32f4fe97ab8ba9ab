//! SPDK's own JSON-RPC server, for diagnosis with SPDK's scripts and tools.
//!
//! Its commands run on the app thread like configuration calls, but bypass the checks of this crate's callers.

use std::path::Path;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::error::{Error, check};

/// umask that leaves permissions to the owner only.
const OWNER_ONLY: libc::mode_t = 0o077;

/// Opens the server. SPDK closes it when it stops, and removes the socket and its `.lock` file. An existing file at
/// the path is removed, unless another SPDK process serves there.
///
/// EINVAL if the server cannot be opened; SPDK logs why.
pub(crate) fn open(_: Spdk, path: &Path) -> Result<(), Error> {
    const OPERATION: &str = "open the JSON-RPC socket";
    let shown = path.display().to_string();
    let Some(text) = path.to_str() else {
        return Err(
            Error::new(OPERATION, libc::EINVAL).with_detail(format!("{shown} is not UTF-8"))
        );
    };
    let c_path = cstr("socket path", text)?;
    // Whoever can write to the socket controls the process. With the umask the socket never has wider permissions,
    // whereas a later chmod would leave a race.
    // SAFETY: umask cannot fail. It is process-wide, so files that other threads create meanwhile are restricted to
    // their owner too, which is harmless.
    let umask = unsafe { libc::umask(OWNER_ONLY) };
    // SAFETY: runs on the app thread; the path is NUL-terminated and outlives the call; null options select the
    // defaults.
    let rc = unsafe { sys::spdk_rpc_initialize(c_path.as_ptr(), std::ptr::null()) };
    // SAFETY: umask cannot fail; restores the previous value.
    unsafe { libc::umask(umask) };
    check(OPERATION, rc).map_err(|error| error.with_detail(shown))
}
