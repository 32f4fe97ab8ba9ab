//! SPDK's own JSON-RPC beside the API: off unless asked for, for its owner alone, and what is made
//! through it stays SPDK's.

mod bdevs;
#[path = "../common/mod.rs"]
mod common;
mod place;
mod proxy;
mod socket;
