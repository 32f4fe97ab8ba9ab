//! What SPDK does with the connection of a path, from its begin to its end.

use std::ffi::{c_char, c_int, c_void};

use spdk_sys as sys;

use super::{Path, refusal};
use crate::completion::{Status, call};
use crate::cstr::cstr;
use crate::error::Error;

/// A function of the shim that begins it.
type Begin = unsafe extern "C" fn(
    *const c_char,
    *const sys::spdk_nvme_transport_id,
    *const c_char,
    Option<unsafe extern "C" fn(*mut c_void, c_int)>,
    *mut c_void,
) -> c_int;

/// Forgets why the connection of the path has failed before.
pub(super) fn forget(path: &Path) {
    if let Some(Ok((id, _))) = path.id().map(|id| id.to_c()) {
        refusal::forget(&id, Some(&path.hostnqn));
    }
}

/// Why the connection of the path has failed since that was forgotten, as an error: EPERM where the peer refuses, does
/// not prove itself or makes no sense, EHOSTUNREACH else. `None` where it has not failed.
pub(super) fn failure(operation: &'static str, path: &Path) -> Option<Error> {
    let (id, _) = path.id()?.to_c().ok()?;
    refusal::noted(operation, &id, &path.hostnqn)
}

/// How it has ended.
pub(super) struct Ended {
    /// 0, or an errno, negative.
    pub(super) status: c_int,
    /// What the peer gave as the reason since that was forgotten.
    pub(super) reason: Option<String>,
}

/// Has it done to the connection of controller `name` that has the path. `None`: the path cannot be named.
///
/// # Safety
/// On the app thread. `begin` uses the texts while it runs alone, and hands its last argument to the callback, once and on
/// the app thread, unless it answers with an error.
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
        // SAFETY: the caller's contract; id and strings outlive the call.
        unsafe { begin(name.as_ptr(), &id, source.as_ptr(), callback, argument) }
    })
    .await?;
    Ok(Some(Ended {
        status,
        reason: refusal::reason(&id, hostnqn),
    }))
}
