//! Signals that stop the process, and the timeouts of stopping.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Timeout for draining calls in flight.
pub const DRAIN: Duration = Duration::from_secs(2);

/// Timeout for clients to close their connections, after the drain.
pub const GRACE: Duration = Duration::from_millis(300);

/// Timeout for the store to finish its requests.
pub const STORE: Duration = Duration::from_millis(300);

/// Timeout for SPDK to disconnect hosts and stop its subsystems. The sum with [`DRAIN`], [`GRACE`] and [`STORE`] stays
/// below the promised five seconds.
pub const SPDK_STOP: Duration = Duration::from_millis(2200);

/// The signals that stop the process cleanly.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs handlers, replacing the default action.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for a signal and returns its name.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Broadcasts the stop to all servers of the process.
pub struct Trigger(watch::Sender<bool>);

/// A receiver of [`Trigger`].
#[derive(Clone)]
pub struct Stopping(watch::Receiver<bool>);

/// Creates a trigger and its receiver.
pub fn trigger() -> (Trigger, Stopping) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Stopping(receiver))
}

impl Trigger {
    /// Stops the servers.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Stopping {
    /// Waits until the trigger has fired or is dropped.
    pub async fn wait(mut self) {
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trigger_reaches_those_who_wait_and_those_who_come_late() {
        let (trigger, stopping) = trigger();
        let early = tokio::spawn(stopping.clone().wait());
        trigger.fire();
        early.await.expect("stopped");
        stopping.wait().await;
    }

    #[tokio::test]
    async fn a_trigger_that_is_gone_counts_as_fired() {
        let (trigger, stopping) = trigger();
        drop(trigger);
        stopping.wait().await;
    }
}
