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

/// Sizes of the NVMe/TCP transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSizes {
    /// Commands that a host may have outstanding in an I/O queue, plus one.
    pub queue_depth: u16,
    /// Data that a command may carry, in bytes; all other data is asked for first.
    pub in_capsule: u32,
    /// Size of the pieces that the data of a command is split into, in bytes, a power of two: each takes a buffer of the pools.
    pub io_unit: u32,
    /// Buffers of the pools that the poll groups of all reactors may keep, of which three quarters are kept.
    pub buffers: u32,
}

impl TcpSizes {
    /// The allowed range for `queue_depth`.
    pub const QUEUE_DEPTH: std::ops::RangeInclusive<u64> = 16..=1024;
    /// The allowed range for `in_capsule`: hosts send the data of Connect so.
    pub const IN_CAPSULE: std::ops::RangeInclusive<u64> = 1024..=131_072;
    /// The allowed range for `io_unit`: up to the largest I/O, in 16 pieces at most.
    pub const IO_UNIT: std::ops::RangeInclusive<u64> = 8192..=131_072;
    /// The allowed range for `buffers`.
    pub const BUFFERS: std::ops::RangeInclusive<u64> = 16..=65_535;
}

/// SPDK's defaults.
impl Default for TcpSizes {
    fn default() -> Self {
        Self {
            queue_depth: 128,
            in_capsule: 4096,
            io_unit: 131_072,
            buffers: 511,
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
    add(spdk, transport, None).await
}

/// Adds the NVMe/TCP transport to the target. EEXIST if the target has it.
pub async fn create_tcp(spdk: Spdk, sizes: TcpSizes) -> Result<(), Error> {
    add(spdk, Transport::Tcp, Some(sizes)).await
}

async fn add(spdk: Spdk, transport: Transport, sizes: Option<TcpSizes>) -> Result<(), Error> {
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
        let sizes = sizes.map(|of| sys::opi_nvmf_sizes {
            queue_depth: of.queue_depth,
            in_capsule: of.in_capsule,
            io_unit: of.io_unit,
            buffers: of.buffers,
        });
        let sizes = sizes.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: on the app thread; the name is static; SPDK copies the sizes; the callback takes the argument back,
        // once, unless the call is refused.
        let rc = unsafe {
            sys::opi_nvmf_transport_create(transport.name().as_ptr(), sizes, callback, argument)
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
