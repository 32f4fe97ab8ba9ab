//! Which hosts may connect to a subsystem.

use std::ffi::c_int;

use spdk_sys as sys;

use super::{Which, disconnect, find, nqn};
use crate::completion::{call, on_status};
use crate::cstr::{cstr, string};
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// Lets a host in. With `psk`, the name of a key in SPDK's keyring, it may connect
/// over TLS with that key.
///
/// ENODEV for an unknown subsystem, EINVAL for a bad NQN or key, EEXIST for a host
/// that is let in already.
pub async fn allow(spdk: Spdk, nqn: &str, host: &str, psk: Option<&str>) -> Result<(), Error> {
    const OPERATION: &str = "allow host";
    nqn::check(host).map_err(|reason| Error::new(OPERATION, libc::EINVAL).with_detail(reason))?;
    let subsystem = find(spdk, OPERATION, nqn)?;
    if list(spdk, nqn)?.iter().any(|allowed| allowed == host) {
        return Err(Error::new(OPERATION, libc::EEXIST)
            .with_detail(format!("host {host:?} is allowed already")));
    }
    let c_host = cstr("host NQN", host)?;
    let c_psk = psk.map(|name| cstr("key name", name)).transpose()?;
    // SAFETY: on the app thread, the subsystem found without an await since; the
    // strings outlive the call.
    let rc = unsafe {
        sys::opi_nvmf_add_host(
            subsystem.as_ptr(),
            c_host.as_ptr(),
            c_psk
                .as_ref()
                .map_or(std::ptr::null(), |name| name.as_ptr()),
        )
    };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("host {host:?}")))
}

/// Keeps a host out from now on and disconnects it. ENODEV for an unknown
/// subsystem, ENOENT for a host that was not let in by name.
pub async fn disallow(spdk: Spdk, nqn: &str, host: &str) -> Result<(), Error> {
    const OPERATION: &str = "disallow host";
    let subsystem = find(spdk, OPERATION, nqn)?.as_ptr();
    let c_host = cstr("host NQN", host)?;
    // SAFETY: on the app thread, the subsystem just found; the string outlives
    // the call.
    let rc = unsafe { sys::spdk_nvmf_subsystem_remove_host(subsystem, c_host.as_ptr()) };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("host {host:?}")))?;
    let status = call::<c_int>(OPERATION, |argument| {
        // SAFETY: as above, still without an await; SPDK copies the string, and
        // `on_status` takes the argument back, once, unless the call is refused.
        unsafe {
            sys::spdk_nvmf_subsystem_disconnect_host(
                subsystem,
                c_host.as_ptr(),
                Some(on_status),
                argument,
            )
        }
    })
    .await?;
    check(OPERATION, status)
}

/// Lets any host in, or from now on only those allowed by name. Then those that are
/// connected over a network are disconnected: SPDK does not say who they are, and who
/// may still connects again by itself.
pub async fn allow_any(spdk: Spdk, nqn: &str, any: bool) -> Result<(), Error> {
    const OPERATION: &str = "allow any host";
    let subsystem = find(spdk, OPERATION, nqn)?.as_ptr();
    // SAFETY: on the app thread, the subsystem just found.
    check(OPERATION, unsafe {
        sys::spdk_nvmf_subsystem_set_allow_any_host(subsystem, any)
    })?;
    if any {
        return Ok(());
    }
    match disconnect(spdk, nqn, &Which::default()).await {
        Err(error) if error.errno.0 == libc::ENOENT => Ok(()),
        other => other,
    }
}

/// The hosts that are let in by name.
pub fn list(spdk: Spdk, nqn: &str) -> Result<Vec<String>, Error> {
    let subsystem = find(spdk, "list hosts", nqn)?.as_ptr();
    let mut hosts = Vec::new();
    // SAFETY: on the app thread, where alone hosts are changed, and without an
    // await in between.
    unsafe {
        let mut host = sys::spdk_nvmf_subsystem_get_first_host(subsystem);
        while !host.is_null() {
            hosts.push(string(sys::spdk_nvmf_host_get_nqn(host)));
            host = sys::spdk_nvmf_subsystem_get_next_host(subsystem, host);
        }
    }
    Ok(hosts)
}
