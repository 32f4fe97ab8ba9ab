//! The target under test, what it exports, and what must be unharmed.

use std::time::Duration;

use super::common::nvme_tcp::Bystander;
use super::common::{Fixture, Options, Target};
use super::door::Door;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;

/// Lines that one look's worth of cases may leave in the log: one an event, floods counted.
const LINES: usize = 2_000;

/// A target, and what cases use.
pub struct World {
    target: Option<Target>,
    /// What cases attack.
    pub fixture: Fixture,
    bystander: Bystander,
    lines: usize,
}

impl World {
    /// Starts a target, with what the door's cases need.
    pub async fn new(door: &dyn Door) -> Self {
        let options = if door.hugepages() {
            Options::hugepages()
        } else {
            Options::default()
        };
        let target = Target::start_with(options).await;
        let bystander = Bystander::new(&target).await;
        let fixture = Fixture::tcp(&target, 4).await;
        let mut world = Self {
            target: Some(target),
            fixture,
            bystander,
            lines: 0,
        };
        door.prepare(&mut world).await;
        world
    }

    /// The target.
    pub fn target(&mut self) -> &mut Target {
        self.target.as_mut().expect("it has not been stopped")
    }

    /// Whether the target has ended by itself.
    pub fn ended(&mut self) -> bool {
        self.target().exited().is_some()
    }

    /// Whether another host's I/O is right, calls are answered, memory and connections are back, and
    /// the log was not flooded.
    pub async fn unharmed(&mut self) -> Result<(), String> {
        let target = self.target.as_mut().expect("it has not been stopped");
        let look = self.bystander.unharmed(target, "fuzz");
        let looked = AssertUnwindSafe(look).catch_unwind().await;
        looked.map_err(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            text.unwrap_or("harm without a word").to_owned()
        })?;
        let lines = self.target().log().lines().count();
        let new = lines - std::mem::replace(&mut self.lines, lines);
        if new > LINES {
            return Err(format!("{new} lines in the log, {LINES} are enough"));
        }
        Ok(())
    }

    /// The end of the target's log.
    pub fn log_tail(&mut self) -> String {
        let log = self.target().log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Ends a target that does not do as it should.
    pub fn discard(mut self) {
        if let Some(mut target) = self.target.take() {
            if target.exited().is_none() {
                target.kill();
            } else {
                target.wait(Duration::from_secs(1));
            }
        }
    }

    /// SIGTERM ends the target with 0 in time, and nothing stays behind.
    pub async fn stop(mut self) -> Result<(), String> {
        let target = self.target.take().expect("it has not been stopped");
        let stopped = std::panic::catch_unwind(AssertUnwindSafe(move || target.stop()));
        stopped
            .map(drop)
            .map_err(|_| "SIGTERM does not end it as it should".to_owned())
    }
}
