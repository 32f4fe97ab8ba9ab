//! SPDK's own JSON-RPC next to the API: disabled by default, accessible to its owner only, and objects
//! created through it are not managed by the API.

mod bdevs;
#[path = "../common/mod.rs"]
mod common;
mod place;
mod proxy;
mod socket;
