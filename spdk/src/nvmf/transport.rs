//! Transports over which hosts reach the target.

use std::ffi::{CStr, c_void};

use spdk_sys as sys;

use super::{check_status, target};
use crate::app_thread::Spdk;
use crate::completion::{Callback, Promise, Status, call};
use crate::error::Error;
use crate::log;
use crate::transport_id::Kind;

/// A transport of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// NVMe/TCP, with TLS at listeners that require it.
    Tcp,
    /// An emulated PCIe controller behind a UNIX socket. Requires hugepages.
    VfioUser,
}

impl Transport {
    pub(super) fn name(self) -> &'static CStr {
        match self {
            Self::Tcp => Kind::Tcp.name(),
            Self::VfioUser => Kind::VfioUser.name(),
        }
    }
}

/// Returns whether the target has the transport.
pub fn exists(spdk: Spdk, transport: Transport) -> Result<bool, Error> {
    let target = target(spdk, "look up transport")?;
    // SAFETY: runs on the app thread; the target lives until SPDK stops.
    let found =
        unsafe { sys::spdk_nvmf_tgt_get_transport(target.as_ptr(), transport.name().as_ptr()) };
    Ok(!found.is_null())
}

/// Adds a transport to the target, with SPDK's default options. EEXIST if the target has it.
pub async fn create(spdk: Spdk, transport: Transport) -> Result<(), Error> {
    const OPERATION: &str = "create transport";
    if exists(spdk, transport)? {
        return Err(Error::new(OPERATION, libc::EEXIST).with_detail(format!("{transport:?}")));
    }
    super::comings::open();
    super::refusals::open();
    if transport == Transport::Tcp {
        // SAFETY: runs on the app thread; takes no arguments.
        let rc = unsafe { sys::opi_sock_disable_ssl_tickets() };
        if rc != 0 {
            log::note(
                sys::spdk_log_level_SPDK_LOG_WARN,
                format!(
                    "TLS session tickets stay on, which Linux hosts refuse: errno {}",
                    -rc
                ),
            );
        }
    }
    let made = call::<Creation>(OPERATION, |callback, argument| {
        // SAFETY: on the app thread; the name is static; the callback takes the
        // argument back, once, unless the call is refused.
        let rc = unsafe {
            sys::opi_nvmf_transport_create(transport.name().as_ptr(), callback, argument)
        };
        if rc == -1 { -libc::EIO } else { rc }
    })
    .await
    .map_err(|error| error.with_detail(format!("{transport:?}")))?;
    if made.0.is_null() {
        return Err(Error::new(OPERATION, libc::EIO)
            .with_detail(format!("{transport:?}: SPDK's log says why")));
    }
    let target = target(spdk, OPERATION)?;
    let status = call::<Status>(OPERATION, |callback, argument| {
        // SAFETY: as above; the transport is new and nobody else has it.
        unsafe {
            sys::spdk_nvmf_tgt_add_transport(target.as_ptr(), made.0, callback, argument);
        }
        0
    })
    .await?;
    let Err(error) = check_status(OPERATION, status) else {
        return Ok(());
    };
    call::<Destruction>(OPERATION, |callback, argument| {
        // SAFETY: the target did not take the transport, so it is ours to destroy.
        unsafe { sys::spdk_nvmf_transport_destroy(made.0, callback, argument) }
    })
    .await?;
    Err(error.with_detail(format!("{transport:?}")))
}

/// A transport that no target owns yet.
struct Made(*mut sys::spdk_nvmf_transport);

/// The callback of a transport's creation.
struct Creation;

// SAFETY: `on_made` takes the argument back once.
unsafe impl Callback for Creation {
    type Report = Made;
    type Function = Option<unsafe extern "C" fn(*mut c_void, *mut sys::spdk_nvmf_transport)>;
    const FUNCTION: Self::Function = Some(on_made);
}

unsafe extern "C" fn on_made(argument: *mut c_void, transport: *mut sys::spdk_nvmf_transport) {
    // SAFETY: the argument of a `call::<Creation>`; SPDK calls once, on this thread.
    unsafe { Promise::<Made>::from_raw(argument) }.complete(Made(transport));
}

/// The callback of a transport's destruction.
struct Destruction;

// SAFETY: `on_destroyed` takes the argument back once.
unsafe impl Callback for Destruction {
    type Report = ();
    type Function = Option<unsafe extern "C" fn(*mut c_void)>;
    const FUNCTION: Self::Function = Some(on_destroyed);
}

unsafe extern "C" fn on_destroyed(argument: *mut c_void) {
    // SAFETY: the argument of a `call::<Destruction>`; SPDK calls once, on this thread.
    unsafe { Promise::<()>::from_raw(argument) }.complete(());
}
