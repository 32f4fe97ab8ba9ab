//! How control threads and SPDK's app thread work together, as far as that needs no SPDK.
//!
//! - [`executor`]: futures on the app thread; [`completion`]: what a C callback brings them.
//! - [`gate`]: lets many use what one closes. [`admission`]: no more calls than there is room for.
//! - [`bell`]: how the control side learns of answers. [`missed`]: wakes that had no room.
//!
//! What several threads share ([`gate`], [`admission`], [`bell`], [`missed`]) is checked by loom in each order in which
//! its steps can come: `scripts/test.sh` runs the models.

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
mod sync;
