//! The door NVMe/TCP as target: what strangers and admitted hosts send to it, and what it must not do
//! to anybody else.

#[path = "../common/mod.rs"]
mod common;

mod session;
