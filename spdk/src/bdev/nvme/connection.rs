//! Operations of the shim on the connection of a path, and why connections fail.

use std::ffi::{c_char, c_int, c_void};

use spdk_sys as sys;

use super::{Path, refusal};
use crate::completion::{Status, call};
use crate::cstr::cstr;
use crate::error::Error;

/// A function of the shim that starts an operation on a connection.
type Begin = unsafe extern "C" fn(
    *const c_char,
    *const sys::spdk_nvme_transport_id,
    *const c_char,
    Option<unsafe extern "C" fn(*mut c_void, c_int)>,
    *mut c_void,
) -> c_int;

/// Forgets why the path's connection failed earlier.
pub(super) fn forget(path: &Path) {
    if let Some(Ok((id, source))) = path.id().map(|id| id.to_c()) {
        refusal::forget(&id, &source, Some(&path.hostnqn));
    }
}

/// Returns why the path's connection has failed since the last [`forget`]: EPERM if the peer refuses the host, does not
/// prove itself or breaks the protocol, else EHOSTUNREACH. `None` if it has not failed.
pub(super) fn failure(operation: &'static str, path: &Path) -> Option<Error> {
    let (id, source) = path.id()?.to_c().ok()?;
    refusal::noted(operation, &id, &source, &path.hostnqn)
}

/// Outcome of an operation on a connection.
pub(super) struct Ended {
    /// 0 or a negative errno.
    pub(super) status: c_int,
    /// Why the connection has failed since the last [`forget`], if known.
    pub(super) reason: Option<String>,
}

/// Runs an operation on the connection of controller `name` that has the path. `None`: the path has no identity.
///
/// # Safety Must be called on the app thread. `begin` borrows the strings only while it runs, and passes its last
/// argument to the callback exactly once on the app thread, unless it returns an error.
pub(super) async unsafe fn done(
    operation: &'static str,
    name: &str,
    path: &Path,
    begin: Begin,
) -> Result<Option<Ended>, Error> {
    let hostnqn = &path.hostnqn;
    let Some(path) = path.id() else {
        return Ok(None);
    };
    let name = cstr("controller name", name)?;
    let (id, source) = path.to_c()?;
    let status = call::<Status>(operation, |callback, argument| {
        // SAFETY: the caller's contract; the ID and the strings outlive the call.
        unsafe { begin(name.as_ptr(), &id, source.as_ptr(), callback, argument) }
    })
    .await?;
    Ok(Some(Ended {
        status,
        reason: refusal::reason(&id, &source, hostnqn),
    }))
}
