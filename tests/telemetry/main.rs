//! What an operator sees of the calls: the log, the audit log, and that no secret is in them.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod log;
mod secrets;
mod tls;
