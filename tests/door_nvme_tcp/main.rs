//! Adversarial tests of the NVMe/TCP target: what strangers and admitted hosts may send, and that nobody else is
//! harmed.

#[path = "../common/mod.rs"]
mod common;

mod admission;
mod buffers;
mod capsules;
mod cut;
mod discovery;
mod fused;
mod h2c_data;
mod headers;
mod lifetimes;
mod log;
mod pieces;
mod queues;
mod session;
mod shares;
mod stalls;
mod termination;
mod world;
