//! The NVMe-oF target: transports, subsystems, and the objects of a subsystem.
//!
//! SPDK creates one target at start, with the discovery subsystem. Only NQNs cross this API. A pointer to a
//! subsystem is looked up again for each step, since code that runs between two steps may have deleted it.

pub(crate) mod comings;
mod connected;
pub mod host;
pub mod listener;
pub mod namespace;
mod notices;
pub mod nqn;
mod operations;
mod pause;
pub mod referral;
pub(crate) mod refusals;
pub mod reservation;
pub mod subsystem;
pub mod transport;
pub(crate) mod view;

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::completion::{Callback, Promise, call};
use crate::cstr::cstr;
use crate::error::{Error, check};

pub use comings::{Coming, Comings, comings};
pub use connected::{Connected, Connections, Doors, Queue, Which, connections, disconnect};
pub use listener::Address;
pub use referral::Referral;
pub use refusals::{Reason, Refusal, Refusals, refusals, refused};
pub use transport::{TcpSizes, Transport};
pub use view::View;

type Subsystem = NonNull<sys::spdk_nvmf_subsystem>;

/// Returns the target that SPDK created at start.
fn target(_: Spdk, operation: &'static str) -> Result<NonNull<sys::spdk_nvmf_tgt>, Error> {
    // SAFETY: runs on the app thread.
    NonNull::new(unsafe { sys::spdk_nvmf_get_first_tgt() }).ok_or_else(|| {
        Error::new(operation, libc::ENODEV).with_detail("there is no NVMe-oF target")
    })
}

/// Looks up a subsystem; ENODEV of `operation` if there is none. The pointer must not be held across an await.
fn find(spdk: Spdk, operation: &'static str, nqn: &str) -> Result<Subsystem, Error> {
    lookup(spdk, operation, nqn)?.ok_or_else(|| {
        Error::new(operation, libc::ENODEV).with_detail(format!("there is no subsystem {nqn:?}"))
    })
}

fn lookup(spdk: Spdk, operation: &'static str, nqn: &str) -> Result<Option<Subsystem>, Error> {
    let target = target(spdk, operation)?;
    let nqn = cstr("NQN", nqn)?;
    // SAFETY: runs on the app thread; the target lives until SPDK stops; the NQN outlives the call.
    Ok(NonNull::new(unsafe {
        sys::spdk_nvmf_tgt_find_subsystem(target.as_ptr(), nqn.as_ptr())
    }))
}

/// How long the end of connections is waited for: their I/O may hang in a device.
const DISCONNECT_LIMIT: Duration = Duration::from_secs(5);

type StateChange = unsafe extern "C" fn(
    *mut sys::spdk_nvmf_subsystem,
    sys::spdk_nvmf_subsystem_state_change_done,
    *mut c_void,
) -> c_int;

/// Changes the state of a subsystem, and awaits the transition.
async fn change_state(
    operation: &'static str,
    subsystem: Subsystem,
    change: StateChange,
) -> Result<(), Error> {
    let status = call::<StateChanged>(operation, |callback, argument| {
        // SAFETY: on the app thread, with a subsystem that the caller has just
        // found; the callback takes the argument back, once.
        unsafe { change(subsystem.as_ptr(), callback, argument) }
    })
    .await?;
    check_status(operation, status)
}

/// Converts a status. SPDK's target reports many failures as -1, which stands for no particular errno.
fn check_status(operation: &'static str, status: c_int) -> Result<(), Error> {
    match status {
        -1 => Err(Error::new(operation, libc::EIO).with_detail("SPDK's log says why")),
        other => check(operation, other),
    }
}

/// The callback of a change of a subsystem's state.
struct StateChanged;

// SAFETY: `on_state` takes the argument back once.
unsafe impl Callback for StateChanged {
    type Report = c_int;
    type Function = sys::spdk_nvmf_subsystem_state_change_done;
    const FUNCTION: Self::Function = Some(on_state);
}

unsafe extern "C" fn on_state(
    _: *mut sys::spdk_nvmf_subsystem,
    argument: *mut c_void,
    status: c_int,
) {
    // SAFETY: the argument of a `call::<StateChanged>`; SPDK calls once, on this thread.
    unsafe { Promise::<c_int>::from_raw(argument) }.complete(status);
}
