//! Subsystems: created and started in one call, stopped and destroyed in one call.
//!
//! ```text
//! create ─► inactive ─► start ─► active ─► stop ─► inactive ─► destroy
//!               └── a step fails: destroyed ──┘
//! ```

use std::ffi::{c_int, c_void};
use std::time::Duration;

use spdk_sys as sys;

use super::pause::{KIND, lock};
use super::{Subsystem, change_state, find, host, listener, lookup, namespace, nqn, target, view};
use crate::app_thread::Spdk;
use crate::completion::{Promise, completion};
use crate::cstr::{cstr, string};
use crate::deadline::in_task;
use crate::error::Error;
use crate::log;
use crate::stopping;

/// Timeout of [`destroy`] for hosts to be disconnected.
const DESTROY_LIMIT: Duration = Duration::from_secs(10);

/// The limit of namespaces per subsystem: SPDK keeps state for each possible one on each reactor and controller.
pub const MAX_NAMESPACES: u32 = 8192;

/// How to create a subsystem.
#[derive(Debug, Clone)]
pub struct Options {
    /// NQN, as validated by [`nqn::check`].
    pub nqn: String,
    /// Serial number: up to 20 printable ASCII characters; empty for SPDK's default.
    pub serial: String,
    /// Model number: up to 40 printable ASCII characters; empty for SPDK's default.
    pub model: String,
    /// The highest namespace ID, at most [`MAX_NAMESPACES`]; 0 for SPDK's default.
    pub max_namespaces: u32,
    /// Admits any host; otherwise only those added by [`super::host`].
    pub allow_any_host: bool,
}

/// The properties of a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Options")]
pub struct Info {
    pub nqn: String,
    pub serial: String,
    pub model: String,
    pub max_namespaces: u32,
    pub allow_any_host: bool,
}

/// Creates and starts a subsystem. EEXIST for an NQN in use, EINVAL for a value that violates the specification,
/// ENOSPC if the target is full.
pub async fn create(spdk: Spdk, options: &Options) -> Result<(), Error> {
    const OPERATION: &str = "create subsystem";
    let invalid = |detail: String| Error::new(OPERATION, libc::EINVAL).with_detail(detail);
    nqn::check(&options.nqn).map_err(invalid)?;
    if options.max_namespaces > MAX_NAMESPACES {
        return Err(invalid(format!(
            "{} namespaces: at most {MAX_NAMESPACES}",
            options.max_namespaces
        )));
    }
    let _alone = lock(&options.nqn).await;
    if lookup(spdk, OPERATION, &options.nqn)?.is_some() {
        return Err(Error::new(OPERATION, libc::EEXIST)
            .with_detail(format!("there is a subsystem {:?} already", options.nqn)));
    }
    let c_nqn = cstr("NQN", &options.nqn)?;
    // SAFETY: runs on the app thread; the target lives until SPDK stops; the NQN outlives the call.
    let subsystem = Subsystem::new(unsafe {
        sys::spdk_nvmf_subsystem_create(
            target(spdk, OPERATION)?.as_ptr(),
            c_nqn.as_ptr(),
            sys::spdk_nvmf_subtype_SPDK_NVMF_SUBTYPE_NVME,
            options.max_namespaces,
        )
    })
    .ok_or_else(|| {
        Error::new(OPERATION, libc::ENOSPC).with_detail("SPDK has no room for another subsystem")
    })?;
    let set_up = async {
        set_texts(subsystem, OPERATION, &options.serial, &options.model)?;
        // SAFETY: runs on the app thread; created above, and its lock is held, so it was not destroyed since.
        unsafe {
            sys::spdk_nvmf_subsystem_set_allow_any_host(subsystem.as_ptr(), options.allow_any_host);
        }
        change_state(OPERATION, subsystem, sys::spdk_nvmf_subsystem_start).await
    };
    if let Err(error) = set_up.await {
        return Err(error.after_undo(destroy_inactive(OPERATION, subsystem).await));
    }
    Ok(())
}

/// Stops a subsystem, which disconnects its hosts, and destroys it with all that it contains. ENODEV if there is
/// none with that NQN. ETIMEDOUT if hosts' I/O does not complete in time; the subsystem then stays, and is started
/// again once that I/O has completed.
pub async fn destroy(spdk: Spdk, nqn: &str) -> Result<(), Error> {
    const OPERATION: &str = "delete subsystem";
    if nqn == nqn::DISCOVERY {
        return Err(Error::new(OPERATION, libc::EINVAL)
            .with_detail("the discovery subsystem belongs to the target"));
    }
    // If the subsystem was deleted through SPDK's JSON-RPC, its hosts were deleted with it: drop their state here
    // too.
    find(spdk, OPERATION, nqn).inspect_err(|_| {
        host::forget_all(spdk, nqn);
        view::forget_all(nqn);
    })?;
    let name = nqn.to_owned();
    let outcome = in_task(spdk, DESTROY_LIMIT, (KIND, nqn), move |caller| async move {
        let subsystem = find(spdk, OPERATION, &name)?;
        change_state(OPERATION, subsystem, sys::spdk_nvmf_subsystem_stop).await?;
        // Others may have changed it since it stopped.
        let subsystem = find(spdk, OPERATION, &name)?;
        // From here on nothing waits for hosts.
        if !caller.commit() {
            // The caller was told that the subsystem stays.
            return start_again(spdk, OPERATION, subsystem, &name).await;
        }
        listener::stop_all(spdk, OPERATION, subsystem)?;
        namespace::forget(&name, |_| true);
        host::forget_all(spdk, &name);
        view::forget_all(&name);
        destroy_inactive(OPERATION, subsystem).await
    });
    outcome.await.unwrap_or_else(|| {
        Err(Error::new(OPERATION, libc::ETIMEDOUT).with_detail(format!(
            "subsystem {nqn:?} has not stopped within {} s: I/O to it does not complete",
            DESTROY_LIMIT.as_secs()
        )))
    })
}

/// Starts a subsystem whose stop was given up before it had ended.
async fn start_again(
    spdk: Spdk,
    operation: &'static str,
    subsystem: Subsystem,
    nqn: &str,
) -> Result<(), Error> {
    if stopping::has_begun(spdk) {
        return Ok(());
    }
    let started = change_state(operation, subsystem, sys::spdk_nvmf_subsystem_start).await;
    let (level, came_of_it) = match &started {
        Ok(()) => (
            sys::spdk_log_level_SPDK_LOG_NOTICE,
            "it serves its hosts again".to_owned(),
        ),
        Err(error) => (
            sys::spdk_log_level_SPDK_LOG_ERROR,
            format!("it stays stopped: {error}"),
        ),
    };
    let what =
        format!("subsystem {nqn:?} has stopped after its deletion was given up: {came_of_it}");
    log::note(level, what);
    started
}

async fn destroy_inactive(operation: &'static str, subsystem: Subsystem) -> Result<(), Error> {
    let (promise, pending) = completion::<()>();
    let argument = promise.into_raw();
    // SAFETY: runs on the app thread; the subsystem is inactive, and nobody else destroys it, since the caller
    // holds its lock.
    let rc = unsafe {
        sys::spdk_nvmf_subsystem_destroy(subsystem.as_ptr(), Some(on_destroyed), argument)
    };
    if rc == -libc::EINPROGRESS {
        return Ok(pending.await?);
    }
    // SAFETY: SPDK calls back only if it returned EINPROGRESS, so the argument is still owned here.
    drop(unsafe { Promise::<()>::from_raw(argument) });
    if rc == 0 {
        Ok(())
    } else {
        Err(Error::new(operation, rc))
    }
}

unsafe extern "C" fn on_destroyed(argument: *mut c_void) {
    // SAFETY: `argument` is the one that `destroy_inactive` passed; SPDK calls back once, on this thread.
    unsafe { Promise::<()>::from_raw(argument) }.complete(());
}

/// Changes the serial and model number of a subsystem, which hosts see at their next Identify. Empty values leave
/// the current ones.
pub async fn set_identity(spdk: Spdk, nqn: &str, serial: &str, model: &str) -> Result<(), Error> {
    const OPERATION: &str = "change subsystem";
    set_texts(find(spdk, OPERATION, nqn)?, OPERATION, serial, model)
}

fn set_texts(
    subsystem: Subsystem,
    operation: &'static str,
    serial: &str,
    model: &str,
) -> Result<(), Error> {
    type Set =
        unsafe extern "C" fn(*mut sys::spdk_nvmf_subsystem, *const std::ffi::c_char) -> c_int;
    let texts: [(_, &str, _, Set); 2] = [
        ("serial number", serial, 20, sys::spdk_nvmf_subsystem_set_sn),
        ("model number", model, 40, sys::spdk_nvmf_subsystem_set_mn),
    ];
    // Validates both before either is changed.
    for (field, text, max, _) in texts {
        if text.len() > max || !text.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
            return Err(Error::new(operation, libc::EINVAL).with_detail(format!(
                "{field} {text:?} must be at most {max} printable ASCII characters"
            )));
        }
    }
    for (field, text, _, set) in texts {
        if text.is_empty() {
            continue;
        }
        let c_text = cstr(field, text)?;
        // SAFETY: runs on the app thread; the caller found or created the subsystem without an await since; SPDK
        // copies the string.
        if unsafe { set(subsystem.as_ptr(), c_text.as_ptr()) } != 0 {
            return Err(Error::new(operation, libc::EINVAL)
                .with_detail(format!("SPDK refuses {field} {text:?}")));
        }
    }
    Ok(())
}

/// Returns the properties of a subsystem; `None` if there is none with that NQN.
pub fn info(spdk: Spdk, nqn: &str) -> Result<Option<Info>, Error> {
    let Some(subsystem) = lookup(spdk, "look up subsystem", nqn)? else {
        return Ok(None);
    };
    let subsystem = subsystem.as_ptr();
    // SAFETY: runs on the app thread; the subsystem was found without an await since; the strings are copied.
    Ok(Some(unsafe {
        Info {
            nqn: string(sys::spdk_nvmf_subsystem_get_nqn(subsystem)),
            serial: string(sys::spdk_nvmf_subsystem_get_sn(subsystem)),
            model: string(sys::spdk_nvmf_subsystem_get_mn(subsystem)),
            max_namespaces: sys::spdk_nvmf_subsystem_get_max_nsid(subsystem),
            allow_any_host: sys::spdk_nvmf_subsystem_get_allow_any_host(subsystem),
        }
    }))
}

/// Returns the NQNs of all subsystems except the discovery subsystem.
pub fn nqns(spdk: Spdk) -> Result<Vec<String>, Error> {
    let target = target(spdk, "list subsystems")?;
    let mut nqns = Vec::new();
    // SAFETY: runs on the app thread, the only one that adds and removes subsystems, without an await in between.
    unsafe {
        let mut subsystem = sys::spdk_nvmf_subsystem_get_first(target.as_ptr());
        while !subsystem.is_null() {
            if !sys::spdk_nvmf_subsystem_is_discovery(subsystem) {
                nqns.push(string(sys::spdk_nvmf_subsystem_get_nqn(subsystem)));
            }
            subsystem = sys::spdk_nvmf_subsystem_get_next(subsystem);
        }
    }
    Ok(nqns)
}
