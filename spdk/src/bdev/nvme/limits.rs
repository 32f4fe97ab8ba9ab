//! Time limits of everything that waits for a peer. SPDK takes them for all controllers, before the first.
//!
//! ```text
//! attempt to connect ──── 10 s ─► given up      I/O ──────────── the operator's ─► path given up
//! Keep Alive unanswered ── 5 s ─► path given up  admin command ── 10 s ──────────► path given up
//! ```

use std::time::Duration;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::error::{Error, check};

/// How long connecting a controller may take in all its steps, also long after the call that made the
/// path: no deadline of a call is much longer.
pub(super) const CONNECT_TIMEOUT_MS: u32 = 10_000;

/// How long a command on the admin queue may stay unanswered.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a Keep Alive may stay unanswered; one is sent twice in that time.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long I/O may stay unanswered unless the operator says otherwise: as long as Linux waits.
pub const DEFAULT_IO_TIMEOUT: Duration = Duration::from_secs(30);

/// Sets the limits. SPDK wants no Keep Alive to have more time than I/O.
pub(crate) fn configure(_: Spdk, io_timeout: Duration) -> Result<(), Error> {
    let micros = |limit: Duration| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    let keep_alive = KEEP_ALIVE.min(io_timeout);
    let limits = sys::opi_nvme_limits {
        tcp_connect_ms: CONNECT_TIMEOUT_MS,
        keep_alive_ms: u32::try_from(keep_alive.as_millis()).unwrap_or(u32::MAX),
        io_us: micros(io_timeout),
        admin_us: micros(ADMIN_TIMEOUT),
    };
    // SAFETY: on the app thread, plain values.
    check("configure NVMe", unsafe {
        sys::opi_nvme_configure(&limits)
    })
}
