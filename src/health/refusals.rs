//! Monitors hosts that were refused: logs them, with a rate limit.

use spdk::CallError;
use spdk::nvmf::{self, Refusal};

use super::Monitor;

/// Log lines per check. The rest is summarized in one more line.
const LINES: usize = 5;

/// Monitor of refused hosts.
pub(crate) struct Refusals;

impl Monitor for Refusals {
    async fn check(&mut self) -> Result<(), CallError> {
        let refusals = nvmf::refusals();
        let (told, rest) = refusals
            .all
            .split_at_checked(LINES)
            .unwrap_or((&refusals.all, &[]));
        for Refusal {
            reason,
            address,
            host,
            subsystem,
        } in told
        {
            tracing::warn!(
                %host,
                %address,
                %subsystem,
                reason = reason.name(),
                "host refused"
            );
        }
        let more = refusals.lost.saturating_add(rest.len() as u64);
        if more > 0 {
            tracing::warn!(more, "more hosts refused than are told of one by one");
        }
        Ok(())
    }
}
