//! Hooks through which SPDK calls the checks of `spdk-gate`, one file per trust boundary.
//!
//! `spdk/changes/` declares each hook as a weak symbol and calls it only where it is linked, so that SPDK's own
//! programs still link. A hook converts C arguments to safe values and calls the gate. Hooks run on a reactor: on an
//! I/O path they neither allocate, nor block, nor log, and none can panic.

pub(crate) mod connect_failures;
mod fabrics;
pub(crate) mod idle;
pub(crate) mod initiator;
mod nvme_tcp_target;
pub(crate) mod polls;
mod reservations;
mod vfio_user;

use spdk_sys as sys;

/// The changes of `spdk/changes/` that the linked SPDK was built with, by name.
pub const CHANGES: &[&str] = sys::SPDK_CHANGES;

/// Whether SPDK delegates persisting reservations of namespaces to the program.
pub const KEEPS_RESERVATIONS: bool = has_change("fabrics-reservation-kept");

/// The changes missing from the linked SPDK: all of them in an unpatched SPDK.
pub const CHANGES_MISSING: &[&str] = sys::SPDK_CHANGES_MISSING;

const fn has_change(name: &str) -> bool {
    let mut at = 0;
    while at < CHANGES.len() {
        if is_same(CHANGES[at].as_bytes(), name.as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}
