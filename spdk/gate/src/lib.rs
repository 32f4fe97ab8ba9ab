//! What each door lets in. One file a door: pure functions and small state machines over bytes and
//! numbers from outside, which say what is well-formed, in order and inside its bounds.
//!
//! Nothing here allocates, waits, reads a clock or knows SPDK: SPDK calls it through the hooks of
//! the `spdk` crate (`spdk/src/hooks/`), which `spdk/changes/` puts into its source at build time.
//! Sums and products are checked or done in 64 bits, and nothing panics: the lints of this package
//! refuse arithmetic that can overflow and indexing.

#![no_std]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a test that panics has failed, which is what it is for"
    )
)]

#[cfg(test)]
extern crate std;

pub mod fabrics;
pub mod nvme;
pub mod nvme_identify;
pub mod nvme_tcp_initiator;
pub mod nvme_tcp_target;
pub mod vfio_user;
pub mod vhost_user;
