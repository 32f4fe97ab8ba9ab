//! Observability: log, audit log, absence of secrets in both, metrics, and health endpoints.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod failures;
mod latency;
mod log;
mod metrics;
mod paths;
mod reactors;
mod secrets;
mod stall;
mod tls;
mod trail;
