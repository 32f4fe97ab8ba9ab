//! Measures how long each poll of an SPDK thread holds its reactor, in the CPU time of the reactor's thread: while the kernel or
//! the hypervisor has taken the core away, that clock stands still. Off unless asked for, since reading it is a system call.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use spdk_sys as sys;

use crate::cstr::string;
use crate::{log, reactors, step};

/// Upper bounds of the counts of [`Polls`].
pub const POLL_BOUNDS: [Duration; 9] = {
    const MICROS: [u64; 9] = [20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];
    let mut bounds = [Duration::ZERO; 9];
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = Duration::from_micros(MICROS[at]);
        at += 1;
    }
    bounds
};

/// A poll that holds the reactor for longer is logged.
const LONG: Duration = Duration::from_millis(1);

/// Maximum number of a core in DPDK (`RTE_MAX_LCORE`), plus one.
const CORES: usize = 1024;

/// The polls of a reactor since the start, by the CPU time from the end of the poll before to their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Polls {
    /// Processor core.
    pub core: u32,
    /// Number of polls up to each of [`POLL_BOUNDS`] and above the one before it, and last of those above all.
    pub counts: [u64; POLL_BOUNDS.len() + 1],
    /// CPU time of all polls.
    pub total: Duration,
}

static MEASURES: AtomicBool = AtomicBool::new(false);

static CORE: [OfCore; CORES] = [const { OfCore::new() }; CORES];

/// Written by the core's reactor only.
struct OfCore {
    counts: [AtomicU64; POLL_BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl OfCore {
    const fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; POLL_BOUNDS.len() + 1],
            nanos: AtomicU64::new(0),
        }
    }

    fn add(&self, held: Duration) {
        let at = POLL_BOUNDS.partition_point(|bound| *bound < held);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(held.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

thread_local! {
    /// CPU time of this reactor's thread at the end of the last poll.
    static LAST: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Measures all polls from now on. False if the linked SPDK cannot. Must be called before SPDK starts.
pub(crate) fn measure() -> bool {
    // SAFETY: no reactor runs yet; `polled` may be called on any of their threads.
    let is_possible = unsafe { sys::opi_watch_polls(Some(polled)) };
    MEASURES.store(is_possible, Ordering::Relaxed);
    is_possible
}

/// Returns the polls of all cores that have had some; empty unless they are measured. Any thread.
pub(crate) fn read() -> Vec<Polls> {
    let cores = (0..).zip(&CORE);
    let polls = cores.map(|(core, of)| Polls {
        core,
        counts: std::array::from_fn(|at| of.counts[at].load(Ordering::Relaxed)),
        total: Duration::from_nanos(of.nanos.load(Ordering::Relaxed)),
    });
    polls
        .filter(|polls| polls.counts.iter().any(|count| *count > 0))
        .collect()
}

/// Returns a clock for the time that a step on this thread takes, in ticks: of the thread's CPU time if polls are measured,
/// else of time.
pub(crate) fn clock() -> u64 {
    if MEASURES.load(Ordering::Relaxed) {
        return reactors::ticks(cpu_time());
    }
    // SAFETY: reads a counter; SPDK's environment is initialized while its pollers run.
    unsafe { sys::spdk_get_ticks() }
}

/// The CPU time of the calling thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes; the clock exists on Linux, else `time` stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// A poll of this SPDK thread has ended, on its reactor's thread.
unsafe extern "C" fn polled(thread: *const sys::spdk_thread) {
    let now = cpu_time();
    let Some(last) = LAST.replace(Some(now)) else {
        return;
    };
    let held = now.saturating_sub(last);
    // SAFETY: reads the number of the calling thread's core.
    let core = unsafe { sys::spdk_env_get_current_core() };
    if let Some(of) = usize::try_from(core).ok().and_then(|core| CORE.get(core)) {
        of.add(held);
    }
    let recipe = step::take_latest();
    if held > LONG {
        // SAFETY: the thread has just been polled and lives until its reactor has returned from here; its name is
        // NUL-terminated.
        let name = unsafe { string(sys::spdk_thread_get_name(thread)) };
        let recipe = recipe.unwrap_or("no step of a call");
        log::note(
            sys::spdk_log_level_SPDK_LOG_NOTICE,
            format!(
                "a poll of {name} held core {core} for {} us of CPU time: {recipe}",
                held.as_micros()
            ),
        );
        // The log's own time is no poll's.
        LAST.set(Some(cpu_time()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_are_counted_up_to_their_bound() {
        let of = OfCore::new();
        for micros in [1, 20, 21, 1000, 10_000, 10_001] {
            of.add(Duration::from_micros(micros));
        }
        let counts = of.counts.each_ref().map(|of| of.load(Ordering::Relaxed));
        assert_eq!(counts, [2, 1, 0, 0, 0, 1, 0, 0, 1, 1]);
        assert_eq!(of.nanos.load(Ordering::Relaxed), 21_043_000);
    }

    #[test]
    fn the_clock_of_a_thread_stands_still_while_it_sleeps() {
        let before = cpu_time();
        std::thread::sleep(Duration::from_millis(50));
        assert!(cpu_time() - before < Duration::from_millis(40));
    }
}
