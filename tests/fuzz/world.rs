//! The target under test, its exports, and the invariants checked after cases.

use std::any::Any;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::common::nvme_tcp::Bystander;
use super::common::{Fixture, Target, poll_blocking};
use super::door::Door;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;

/// Log lines that the cases between two checks may cause: one per event, floods are counted.
const LINES: usize = 2_000;

/// Deadline for the release of resources.
const BACK: Duration = Duration::from_secs(10);

/// Tolerated growth of open descriptors: API connections come and go.
const FDS: usize = 8;

/// Tolerated growth of resident memory, MiB.
const SLACK: u64 = 48;

/// The same with AddressSanitizer, which keeps freed memory in quarantine and metadata of each
/// allocation.
const SLACK_ASAN: u64 = 400;

/// A target and its exports.
pub struct World {
    target: Option<Target>,
    /// The subsystem that cases attack.
    pub fixture: Fixture,
    /// The port of the subsystem that the door prepared, if any.
    pub place: Option<u16>,
    bystander: Bystander,
    lines: usize,
    /// The resource usage after the first check, when pools and caches have filled.
    usage: Option<Usage>,
}

/// A snapshot of the process's resource usage.
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
    /// Starts a target and prepares it for the door's cases.
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

    /// Returns the target.
    pub fn target(&mut self) -> &mut Target {
        self.target
            .as_mut()
            .expect("the target has not been stopped")
    }

    /// Returns whether the target has exited.
    pub fn ended(&mut self) -> bool {
        self.target().exited().is_some()
    }

    /// Checks the invariants: another host's I/O is correct, calls are answered, memory and connections
    /// are released, and the log was not flooded.
    pub async fn unharmed(&mut self) -> Result<(), String> {
        let target = self
            .target
            .as_mut()
            .expect("the target has not been stopped");
        let look = self.bystander.unharmed(target, "fuzz");
        let looked = AssertUnwindSafe(look).catch_unwind().await;
        looked.map_err(|panic| text(&*panic))?;
        self.gave_back()?;
        let lines = self.target().log().lines().count();
        let new = lines - std::mem::replace(&mut self.lines, lines);
        if new > LINES {
            return Err(format!("{new} new log lines, more than {LINES}"));
        }
        Ok(())
    }

    /// Checks that descriptors and memory have been released.
    fn gave_back(&mut self) -> Result<(), String> {
        let target = self
            .target
            .as_ref()
            .expect("the target has not been stopped");
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
            format!("resources were not released: {now:?}, before {before:?}")
        })
    }

    /// Sends SIGTERM from a thread after `moment`.
    pub fn signal_in(&self, moment: Duration) -> JoinHandle<()> {
        let pid = self
            .target
            .as_ref()
            .expect("the target has not been stopped")
            .pid();
        std::thread::spawn(move || {
            std::thread::sleep(moment);
            // The target has not been reaped, so its PID is still valid.
            let _ = kill_process(pid, Signal::TERM);
        })
    }

    /// Checks that the target, after the signal, stops in time with status 0 and leaves nothing behind.
    pub fn stopped(mut self) -> Result<(), String> {
        let mut target = self.target.take().expect("the target has not been stopped");
        let stopped = std::panic::catch_unwind(AssertUnwindSafe(|| target.stopped()));
        stopped
            .map(drop)
            .map_err(|panic| format!("the stop after SIGTERM failed: {}", text(&*panic)))
    }

    /// Returns the end of the target's log.
    pub fn log_tail(&mut self) -> String {
        let log = self.target().log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Kills a target that violated an invariant.
    pub fn discard(mut self) {
        if let Some(mut target) = self.target.take() {
            if target.exited().is_none() {
                target.kill();
            } else {
                target.wait(Duration::from_secs(1));
            }
        }
    }

    /// Checks that SIGTERM stops the target in time with status 0, and that nothing is left behind.
    pub async fn stop(mut self) -> Result<(), String> {
        let target = self.target.take().expect("the target has not been stopped");
        let stopped = std::panic::catch_unwind(AssertUnwindSafe(move || target.stop()));
        stopped
            .map(drop)
            .map_err(|panic| format!("the stop after SIGTERM failed: {}", text(&*panic)))
    }
}

/// Returns a panic's message.
pub fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panic without a message").to_owned()
}
