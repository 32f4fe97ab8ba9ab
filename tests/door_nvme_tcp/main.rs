//! The door NVMe/TCP as target: what strangers and admitted hosts send to it, and what it must not do
//! to anybody else.

#[path = "../common/mod.rs"]
mod common;

mod admission;
mod buffers;
mod capsules;
mod cut;
mod fused;
mod h2c_data;
mod headers;
mod lifetimes;
mod log;
mod session;
mod shares;
mod stalls;
mod termination;
mod world;
