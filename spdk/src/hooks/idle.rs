//! Hooks by which reactors without work sleep (`spdk/changes/include/idle.h`).
//!
//! A reactor waits for an event that other threads set, and for its groups of sockets. What only polling can tell, such as a
//! doorbell in a guest's memory, is found after the longest sleep.

use std::cell::{Cell, OnceCell};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use spdk_control::event_fd::EventFd;
use spdk_control::sleep::{Durations, Sleeper};
use spdk_sys as sys;

use crate::cores::CoreSet;
use crate::reactors;

/// Time without work before the first sleep: longer than the gaps within a sequence of calls.
const THRESHOLD: Duration = Duration::from_millis(1);

/// Time without work after which a sleep has its maximum duration.
const FULL: Duration = Duration::from_millis(16);

/// Maximum duration of a sleep unless set otherwise. Timed pollers run late by this at most.
pub const LONGEST: Duration = Duration::from_millis(1);

/// Groups of sockets that a reactor is woken for: SPDK has one of each socket implementation in each poll group. What
/// more groups have is found after the sleep.
const GROUPS: usize = 16;

/// No descriptor.
const NONE: RawFd = -1;

/// Set before SPDK starts, if its reactors may sleep.
static SLEEPING: OnceLock<Sleeping> = OnceLock::new();

struct Sleeping {
    /// Maximum duration of a sleep.
    longest: Duration,
    /// By core; `None` for one without a reactor.
    reactors: Vec<Option<Shared>>,
}

/// What other threads know of a reactor.
struct Shared {
    /// Set once the reactor can sleep.
    sleeper: OnceLock<Sleeper<EventFd>>,
    groups: [AtomicI32; GROUPS],
    asleep_ticks: AtomicU64,
}

/// What a reactor itself knows.
struct Reactor {
    shared: &'static Shared,
    sleeper: &'static Sleeper<EventFd>,
    durations: Durations,
    busy: Cell<u64>,
    since: Cell<u64>,
    listens: Cell<bool>,
}

thread_local! {
    /// None if the reactor cannot sleep.
    static REACTOR: OnceCell<Option<Reactor>> = const { OnceCell::new() };
}

/// Lets the reactors of these cores sleep without work, each time for `longest` at most. Must be called before SPDK
/// starts, which it does once in a process; a later call has no effect.
pub(crate) fn allow(cores: &CoreSet, longest: Duration) {
    let mut reactors = Vec::new();
    for core in cores.iter() {
        reactors.resize_with(core, || None);
        reactors.push(Some(Shared::new()));
    }
    let _ = SLEEPING.set(Sleeping { longest, reactors });
}

/// Returns the shared state of a core's reactor; `None` if it may not sleep.
fn shared(core: u32) -> Option<&'static Shared> {
    let reactors = &SLEEPING.get()?.reactors;
    reactors.get(usize::try_from(core).ok()?)?.as_ref()
}

/// Wakes the reactor of a core; see [`Sleeper::wake`]. Any thread.
pub(crate) fn wake(core: u32) {
    if let Some(sleeper) = shared(core).and_then(|shared| shared.sleeper.get()) {
        sleeper.wake();
    }
}

/// Returns the ticks for which the reactor of a core has slept. Any thread.
pub(crate) fn asleep_ticks(core: u32) -> u64 {
    shared(core).map_or(0, |shared| shared.asleep_ticks.load(Ordering::Relaxed))
}

impl Shared {
    fn new() -> Self {
        Self {
            sleeper: OnceLock::new(),
            groups: [const { AtomicI32::new(NONE) }; GROUPS],
            asleep_ticks: AtomicU64::new(0),
        }
    }

    /// Replaces the first group that is `before`. False if there is none.
    fn replace(&self, before: RawFd, after: RawFd) -> bool {
        // Read first: a search of all cores takes no line of another one.
        let of = |group: &AtomicI32| {
            group.load(Ordering::Relaxed) == before
                && group
                    .compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
        };
        self.groups.iter().any(of)
    }
}

impl Reactor {
    /// Prepares the calling thread, the reactor of this core. `None`: it is to poll, or out of descriptors.
    fn new(core: u32) -> Option<Self> {
        let longest = SLEEPING.get()?.longest;
        let shared = shared(core)?;
        let event = EventFd::new().ok()?;
        // A sleep that ends on time ends within microseconds, not within the default of 50.
        // SAFETY: sets a number of the calling thread.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        Some(Self {
            shared,
            sleeper: shared.sleeper.get_or_init(|| Sleeper::new(event)),
            durations: Durations {
                threshold: reactors::ticks(THRESHOLD),
                full: reactors::ticks(FULL),
                longest: reactors::ticks(longest),
            },
            busy: Cell::new(0),
            since: Cell::new(0),
            listens: Cell::new(false),
        })
    }

    /// Takes note of a turn, and may sleep after it. Returns the ticks asleep.
    fn turn(&self, busy: u64, now: u64) -> u64 {
        if busy != self.busy.replace(busy) {
            self.since.set(now);
            if self.listens.replace(false) {
                self.sleeper.resume_polling(false);
            }
            return 0;
        }
        let Some(sleep) = self.durations.after(now.saturating_sub(self.since.get())) else {
            return 0;
        };
        if !self.listens.get() {
            match self.sleeper.listen() {
                true => self.listens.set(true),
                false => self.since.set(now),
            }
            return 0;
        }
        let is_woken = self.wait(reactors::duration(sleep));
        self.sleeper.resume_polling(is_woken);
        self.listens.set(false);
        // SAFETY: reads a counter; the environment is initialized while reactors run.
        let slept = unsafe { sys::spdk_get_ticks() }.saturating_sub(now);
        self.shared.asleep_ticks.fetch_add(slept, Ordering::Relaxed);
        if is_woken {
            self.since.set(now + slept);
        }
        slept
    }

    /// Waits until a descriptor is readable, or for this long. Returns whether one is.
    fn wait(&self, limit: Duration) -> bool {
        let mut fds = [libc::pollfd {
            fd: self.sleeper.event().as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        }; GROUPS + 1];
        let [_, groups @ ..] = &mut fds;
        for (entry, group) in groups.iter_mut().zip(&self.shared.groups) {
            // poll(2) ignores a negative descriptor.
            entry.fd = group.load(Ordering::Acquire);
        }
        let limit = libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let number = fds.len() as libc::nfds_t;
        // SAFETY: as many entries as said, and a time, which outlive the call; no signal mask. A descriptor that is closed
        // meanwhile is an error of its entry.
        unsafe { libc::ppoll(fds.as_mut_ptr(), number, &limit, std::ptr::null()) > 0 }
    }
}

/// A turn of this core's reactor has ended. May sleep; returns for how many ticks it did.
///
/// # Safety
/// Called on that reactor's thread, between its turns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_idle_turn(core: u32, busy_tsc: u64, now: u64) -> u64 {
    // Fails only while the thread ends.
    let slept = REACTOR.try_with(|reactor| {
        let reactor = reactor.get_or_init(|| Reactor::new(core)).as_ref();
        reactor.map(|reactor| reactor.turn(busy_tsc, now))
    });
    slept.ok().flatten().unwrap_or(0)
}

/// The descriptor ends sleeps of the reactor of this core while it is readable.
///
/// # Safety
/// None: callable on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_idle_watch(core: u32, fd: i32) {
    if let Some(shared) = shared(core) {
        shared.replace(NONE, fd);
    }
}

/// Ends [`opi_idle_watch`], on whatever core it was.
///
/// # Safety
/// None: callable on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_idle_unwatch(fd: i32) {
    let reactors = SLEEPING.get().map(|sleeping| &sleeping.reactors);
    for shared in reactors.into_iter().flatten().flatten() {
        shared.replace(fd, NONE);
    }
}

/// Wakes the reactor of a core.
///
/// # Safety
/// None: callable on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_idle_wake(core: u32) {
    wake(core);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_and_go_and_more_than_there_is_room_for_are_left_out() {
        let shared = Shared::new();
        for fd in 10..26 {
            assert!(shared.replace(NONE, fd), "{fd}");
        }
        assert!(!shared.replace(NONE, 26));
        assert!(shared.replace(12, NONE));
        assert!(!shared.replace(12, NONE));
        assert!(shared.replace(NONE, 26));
    }
}
