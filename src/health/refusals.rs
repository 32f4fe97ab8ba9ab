//! Hosts that are refused: told in the log, a flood of them by its number.

use spdk::CallError;
use spdk::nvmf::{self, Refusal};

use super::Monitor;

/// Lines of one look. The rest of a flood is one line more.
const LINES: usize = 5;

/// Looks after the hosts that do not get in.
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
