//! Which event ends the process, and how long ending may take.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How long calls in flight may take to finish once the process is to stop.
pub const DRAIN: Duration = Duration::from_secs(2);

/// How long clients may then take to close their connections.
pub const GRACE: Duration = Duration::from_millis(300);

/// How long the store may take to end what it was asked for.
pub const STORE: Duration = Duration::from_millis(300);

/// How long SPDK may take to disconnect hosts and end its subsystems. Together
/// with [`DRAIN`], [`GRACE`] and [`STORE`] it keeps a stop below the five seconds that are promised.
pub const SPDK_STOP: Duration = Duration::from_millis(2200);

/// The signals that stop the process cleanly.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from their default, which is to kill.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them and says which.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Tells every server of the process, once, that it is to stop.
pub struct Trigger(watch::Sender<bool>);

/// A server's end of [`Trigger`].
#[derive(Clone)]
pub struct Stopping(watch::Receiver<bool>);

/// A trigger and what listens to it.
pub fn trigger() -> (Trigger, Stopping) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Stopping(receiver))
}

impl Trigger {
    /// Stops them.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Stopping {
    /// Returns once the trigger has fired or is gone.
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
