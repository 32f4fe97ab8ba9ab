//! The target under test, what it exports, and what must be unharmed.

use std::any::Any;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::common::nvme_tcp::Bystander;
use super::common::{Fixture, Target, poll_blocking};
use super::door::Door;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;

/// Lines that one look's worth of cases may leave in the log: one an event, floods counted.
const LINES: usize = 2_000;

/// How long it may take until what was taken is back.
const BACK: Duration = Duration::from_secs(10);

/// Descriptors that the target may have more of: its API's connections come and go.
const FDS: usize = 8;

/// Resident memory may grow by this much, MiB.
const SLACK: u64 = 48;

/// The same where AddressSanitizer keeps what was freed, and what it notes of each allocation.
const SLACK_ASAN: u64 = 400;

/// A target, and what cases use.
pub struct World {
    target: Option<Target>,
    /// What cases attack.
    pub fixture: Fixture,
    /// The port of what a door has prepared, where it has.
    pub place: Option<u16>,
    bystander: Bystander,
    lines: usize,
    /// What the target had taken when pools and caches had filled up.
    usage: Option<Usage>,
}

/// What a process has taken.
#[derive(Clone, Copy, Debug)]
struct Usage {
    fds: usize,
    hugepages_free: u64,
    resident_mib: u64,
}

impl Usage {
    fn of(target: &Target) -> Self {
        let process = format!("/proc/{}", target.pid().as_raw_nonzero());
        let fds = std::fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count);
        let pages = std::fs::read_to_string(format!("{process}/statm")).unwrap_or_default();
        let resident = pages.split(' ').nth(1).and_then(|text| text.parse().ok());
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let free = std::fs::read_to_string(pool).unwrap_or_default();
        Self {
            fds,
            hugepages_free: free.trim().parse().unwrap_or(0),
            resident_mib: resident.unwrap_or(0_u64) / 256,
        }
    }

    fn is_back_to(&self, before: &Self, slack_mib: u64) -> bool {
        self.fds <= before.fds + FDS
            && self.hugepages_free >= before.hugepages_free
            && self.resident_mib <= before.resident_mib + slack_mib
    }
}

impl World {
    /// Starts a target, with what the door's cases need.
    pub async fn new(door: &dyn Door) -> Self {
        let target = Target::start_with(door.options()).await;
        let bystander = Bystander::new(&target).await;
        let fixture = Fixture::tcp(&target, 4).await;
        let mut world = Self {
            target: Some(target),
            fixture,
            place: None,
            bystander,
            lines: 0,
            usage: None,
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
        looked.map_err(|panic| text(&*panic))?;
        self.gave_back()?;
        let lines = self.target().log().lines().count();
        let new = lines - std::mem::replace(&mut self.lines, lines);
        if new > LINES {
            return Err(format!("{new} lines in the log, {LINES} are enough"));
        }
        Ok(())
    }

    /// Whether descriptors and memory are back.
    fn gave_back(&mut self) -> Result<(), String> {
        let target = self.target.as_ref().expect("it has not been stopped");
        let Some(before) = self.usage else {
            self.usage = Some(Usage::of(target));
            return Ok(());
        };
        let slack = if cfg!(asan) { SLACK_ASAN } else { SLACK };
        let back = poll_blocking(BACK, || {
            Usage::of(target).is_back_to(&before, slack).then_some(())
        });
        back.ok_or_else(|| {
            let now = Usage::of(target);
            format!("not given back: {now:?}, before {before:?}")
        })
    }

    /// Sends SIGTERM from a thread, after a moment.
    pub fn signal_in(&self, moment: Duration) -> JoinHandle<()> {
        let pid = self.target.as_ref().expect("it has not been stopped").pid();
        std::thread::spawn(move || {
            std::thread::sleep(moment);
            // It has not been waited for, so the number is still its own.
            let _ = kill_process(pid, Signal::TERM);
        })
    }

    /// The signal has ended it with 0 in time, and nothing stays behind.
    pub fn stopped(mut self) -> Result<(), String> {
        let mut target = self.target.take().expect("it has not been stopped");
        let stopped = std::panic::catch_unwind(AssertUnwindSafe(|| target.stopped()));
        stopped
            .map(drop)
            .map_err(|panic| format!("SIGTERM does not end it as it should: {}", text(&*panic)))
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
            .map_err(|panic| format!("SIGTERM does not end it as it should: {}", text(&*panic)))
    }
}

/// What a panic says.
pub fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("harm without a word").to_owned()
}
