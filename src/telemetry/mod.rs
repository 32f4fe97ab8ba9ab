//! Observability of the process: log lines of calls, audit log, metrics, traces.
//!
//! ```text
//! request ─► calls::observed ─► server, gateway ─► Observe ─► service
//!                  │             (method)           (object, from the messages)
//!                  └─► the answer has left ─┬─► log line
//!                                           ├─► audit log (changes alone)
//!                                           ├─► RPC metrics
//!                                           └─► span (traces)
//! ```

pub mod audit;
mod audit_file;
pub mod calls;
pub mod chain;
pub mod health;
pub mod http;
pub mod log;
mod methods;
pub mod metrics;
mod objects;
mod observe;
mod one_line;
mod peek;
mod trace_context;
pub mod traces;
pub mod watchdog;
mod wire;

use std::sync::Arc;

use audit::Audit;
use metrics::Metrics;

use crate::server::RateLimit;

pub(crate) use audit_file::{Kept as KeptHead, check as check_audit_log};
pub use calls::Record;
pub use observe::Observe;

/// The sinks of call reports. One per process.
#[derive(Default)]
pub struct Telemetry {
    audit: Option<Audit>,
    /// Rate limit for log lines of incomplete calls.
    incomplete: RateLimit,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Telemetry {
    /// Reports to the log, and to `audit` if it is on.
    pub fn new(audit: Option<Audit>) -> Arc<Self> {
        Arc::new(Self {
            audit,
            incomplete: RateLimit::default(),
            metrics: Arc::default(),
        })
    }

    /// Lines lost by the audit log since start.
    fn audit_lost(&self) -> u64 {
        self.audit.as_ref().map_or(0, Audit::lost)
    }

    /// Number of the audit log's last line.
    fn audit_last(&self) -> Option<u64> {
        self.audit.as_ref().map(Audit::last)
    }

    /// Flushes the audit log, up to a short timeout.
    pub fn finish(&self) {
        if let Some(audit) = &self.audit {
            audit.finish();
        }
    }
}
