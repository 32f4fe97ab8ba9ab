//! Detects stalled reactors. A stalled reactor serves no I/O: it is reported with the step that it runs, and the
//! process is not ready until it turns again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spdk::{Handle, Reactor};
use tokio::time::{MissedTickBehavior, interval};

use super::Telemetry;
use super::health::Health;
use crate::events::{Event, EventType, Log};
use crate::shutdown::Stopping;

/// A reactor counts as stalled after this time in one turn.
const LIMIT: Duration = Duration::from_secs(1);

/// Interval of the checks.
const CHECK: Duration = Duration::from_millis(250);

/// Watches the reactors until `stopping`.
pub async fn watch(
    spdk: Handle,
    telemetry: Arc<Telemetry>,
    health: Arc<Health>,
    events: Arc<Log>,
    stopping: Stopping,
) {
    let mut stalled = Stalled::default();
    let mut check = interval(CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = std::pin::pin!(stopping.wait());
    loop {
        tokio::select! {
            _ = check.tick() => {}
            () = &mut stop => return,
        }
        let reactors = spdk.reactors();
        for change in stalled.update(&reactors) {
            match change {
                Change::Stalled(reactor) => {
                    telemetry.metrics.stall(reactor.core);
                    // Configuration steps run only on the first reactor.
                    let first = reactors.first().map(|first| first.core);
                    let step = spdk.current_step().filter(|_| first == Some(reactor.core));
                    let step = step.unwrap_or("none of configuration");
                    let for_ms = reactor.last_turn.as_millis();
                    tracing::error!(core = reactor.core, for_ms, step, "reactor does not turn");
                    let core = reactor.core;
                    let reason =
                        format!("the reactor of core {core} does not turn; its step: {step}");
                    events.tell(Event::now(EventType::ReactorStalled, "").because(&reason));
                }
                Change::Turns(core) => {
                    tracing::warn!(core, "reactor turns again");
                    let reason = format!("the reactor of core {core} turns again");
                    events.tell(Event::now(EventType::ReactorResumed, "").because(&reason));
                }
            }
        }
        health.set_stalled(stalled.reason()).await;
    }
}

/// The stalled reactors.
#[derive(Default)]
struct Stalled(BTreeSet<u32>);

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Stalled(Reactor),
    Turns(u32),
}

impl Stalled {
    fn update(&mut self, reactors: &[Reactor]) -> Vec<Change> {
        let changes = reactors.iter().filter_map(|reactor| {
            if reactor.last_turn >= LIMIT {
                let is_new = self.0.insert(reactor.core);
                is_new.then_some(Change::Stalled(*reactor))
            } else {
                let was = self.0.remove(&reactor.core);
                was.then_some(Change::Turns(reactor.core))
            }
        });
        changes.collect()
    }

    fn reason(&self) -> Option<String> {
        let cores: Vec<String> = self.0.iter().map(u32::to_string).collect();
        (!cores.is_empty())
            .then(|| format!("the reactor of core {} does not turn", cores.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_told_of_once_and_so_is_its_end() {
        let reactor = |core, millis| Reactor {
            core,
            busy: Duration::ZERO,
            idle: Duration::ZERO,
            asleep: Duration::ZERO,
            last_turn: Duration::from_millis(millis),
        };
        let mut stalled = Stalled::default();
        assert_eq!(stalled.update(&[reactor(0, 1), reactor(2, 999)]), []);
        assert_eq!(stalled.reason(), None);
        let stuck = reactor(2, 1000);
        assert_eq!(
            stalled.update(&[reactor(0, 1), stuck]),
            [Change::Stalled(stuck)]
        );
        assert_eq!(stalled.update(&[reactor(0, 1), reactor(2, 1250)]), []);
        let reason = stalled.reason().expect("one is stalled");
        assert_eq!(reason, "the reactor of core 2 does not turn");
        assert_eq!(
            stalled.update(&[reactor(0, 1), reactor(2, 1)]),
            [Change::Turns(2)]
        );
        assert_eq!(stalled.reason(), None);
    }
}
