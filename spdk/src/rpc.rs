//! SPDK's own JSON-RPC server, for diagnosis: SPDK's scripts and tools attach to it.
//!
//! Its commands run on the app thread like configuration, and pass none of the checks of
//! those who call it through this crate.

use std::path::Path;

use spdk_sys as sys;

use crate::cstr::cstr;
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// Permissions that nobody but the owner gets.
const OWNER_ONLY: libc::mode_t = 0o077;

/// Opens the server; SPDK closes it and removes its files (the socket, and `.lock`
/// beside it) when it stops. What is at the path before is removed, unless another
/// SPDK serves there.
///
/// EINVAL if it cannot be opened; SPDK logs why.
pub(crate) fn open(_: Spdk, path: &Path) -> Result<(), Error> {
    const OPERATION: &str = "open the JSON-RPC socket";
    let shown = path.display().to_string();
    let Some(text) = path.to_str() else {
        return Err(
            Error::new(OPERATION, libc::EINVAL).with_detail(format!("{shown} is not UTF-8"))
        );
    };
    let c_path = cstr("socket path", text)?;
    // Whoever can write to the socket controls the process: so from the first moment it
    // has no permissions that would have to be taken away again.
    // SAFETY: cannot fail. That other threads' files get them too for this moment does no
    // harm: nobody but their owner is to have them.
    let umask = unsafe { libc::umask(OWNER_ONLY) };
    // SAFETY: on the app thread; the path outlives the call, no options means the defaults.
    let rc = unsafe { sys::spdk_rpc_initialize(c_path.as_ptr(), std::ptr::null()) };
    // SAFETY: as above.
    unsafe { libc::umask(umask) };
    check(OPERATION, rc).map_err(|error| error.with_detail(shown))
}
