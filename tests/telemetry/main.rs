//! What an operator sees: the log, the audit log and that no secret is in them, metrics, and whether it serves.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod failures;
mod latency;
mod log;
mod metrics;
mod paths;
mod scrape;
mod secrets;
mod stall;
mod tls;
mod trail;
