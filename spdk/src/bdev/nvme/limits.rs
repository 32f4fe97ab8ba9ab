//! Timeouts of all waits for NVMe peers, and how these are authenticated. SPDK applies it to all controllers, and takes it
//! only before the first.
//!
//! ```text
//! attempt to connect ──── 10 s ─► given up      I/O ──────────── the operator's ─► path given up
//! Keep Alive unanswered ── 5 s ─► path given up  admin command ── 10 s ──────────► path given up
//! ```

use std::time::Duration;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::dhchap::Weakest;
use crate::error::{Error, check};

/// Deadline of connecting a controller, all steps together; also of reconnects long after the call that created the
/// path. No deadline of a call is much longer.
pub(super) const CONNECT_TIMEOUT_MS: u32 = 10_000;

/// Timeout of commands on the admin queue.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Keep Alive timeout; two Keep Alives are sent in that time.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Default I/O timeout, the same as Linux's; the operator can set another.
pub const DEFAULT_IO_TIMEOUT: Duration = Duration::from_secs(30);

/// Sets the timeouts, and what peers may authenticate with. SPDK requires that the Keep Alive timeout does not exceed the
/// I/O timeout.
pub(crate) fn configure(_: Spdk, io_timeout: Duration, dhchap: Weakest) -> Result<(), Error> {
    let micros = |limit: Duration| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    let keep_alive = KEEP_ALIVE.min(io_timeout);
    let limits = sys::opi_nvme_limits {
        tcp_connect_ms: CONNECT_TIMEOUT_MS,
        keep_alive_ms: u32::try_from(keep_alive.as_millis()).unwrap_or(u32::MAX),
        io_us: micros(io_timeout),
        admin_us: micros(ADMIN_TIMEOUT),
        dhchap: dhchap.accepted(),
    };
    // SAFETY: on the app thread; `limits` is valid for reads during the call.
    check("configure NVMe", unsafe {
        sys::opi_nvme_configure(&limits)
    })
}
