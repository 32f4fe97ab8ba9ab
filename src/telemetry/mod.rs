//! What an operator sees of the process: a log line for each call, the audit log, metrics.
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

pub use calls::Record;
pub use observe::Observe;

/// What calls are reported to. One to a process.
#[derive(Default)]
pub struct Telemetry {
    audit: Option<Audit>,
    /// Lines of calls whose requests did not come in full.
    incomplete: RateLimit,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Telemetry {
    /// Reports to the log, and to `audit` where it is on.
    pub fn new(audit: Option<Audit>) -> Arc<Self> {
        Arc::new(Self {
            audit,
            incomplete: RateLimit::default(),
            metrics: Arc::default(),
        })
    }

    /// Lines that the audit log did not take since start.
    fn audit_lost(&self) -> u64 {
        self.audit.as_ref().map_or(0, Audit::lost)
    }

    /// Writes out what waits for the audit log, as far as that is possible in a short time.
    pub fn finish(&self) {
        if let Some(audit) = &self.audit {
            audit.finish();
        }
    }
}
