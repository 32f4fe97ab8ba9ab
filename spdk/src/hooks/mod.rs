//! The hooks through which SPDK asks the gates (`spdk-gate`). One file a door.
//!
//! `spdk/changes/` declares each hook as a weak symbol and calls it where it is linked, so that SPDK's
//! own programs link without. A hook takes what C has, makes safe values of it, and asks the gate. It
//! runs on a reactor: it neither allocates, nor waits, nor logs, and it cannot panic.

pub(crate) mod connect_failures;
mod fabrics;
pub(crate) mod initiator;
mod nvme_tcp_target;
mod reservations;
mod vfio_user;

use spdk_sys as sys;

/// The changes of `spdk/changes/` that the SPDK which is linked was built with, by name.
pub const CHANGES: &[&str] = sys::SPDK_CHANGES;

/// Whether SPDK has the program keep reservations of namespaces.
pub const KEEPS_RESERVATIONS: bool = has_change("fabrics-reservation-kept");

/// Those that it lacks: all of them in an SPDK that the user brought as it is.
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
