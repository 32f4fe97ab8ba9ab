//! Input validation at every trust boundary, one file each: pure functions and small state machines over bytes and
//! numbers from outside. They check what is well-formed, in sequence and within bounds.
//!
//! Nothing here allocates, blocks, reads a clock or depends on SPDK. SPDK calls these functions through the hooks of
//! the `spdk` crate (`spdk/src/hooks/`), which `spdk/changes/` adds to its source at build time. Sums and products
//! are checked or done in 64 bits, and nothing panics: this package's lints reject indexing, and arithmetic that can
//! overflow.

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
