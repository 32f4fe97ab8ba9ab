//! The concurrency between control threads and SPDK's app thread, as far as it needs no SPDK.
//!
//! - [`executor`]: futures on the app thread; [`completion`]: what a C callback delivers to them.
//! - [`gate`]: shared use of a value until it is closed. [`admission`]: backpressure, a bound on calls in flight.
//! - [`bell`]: how the control side learns of results. [`missed`]: wakes that found the ring full.
//! - [`sleep`]: when a reactor without work sleeps, and how it is woken.
//!
//! What several threads share ([`gate`], [`admission`], [`bell`], [`missed`], [`sleep`]) is model-checked by loom, in every
//! possible interleaving: `scripts/test.sh` runs the models.

pub mod admission;
pub mod bell;
#[cfg(not(loom))]
pub mod completion;
#[cfg(not(loom))]
pub mod event_fd;
#[cfg(not(loom))]
pub mod executor;
pub mod gate;
pub mod missed;
pub mod sleep;
mod sync;
