//! Hooks by which reactors without work sleep (`spdk/changes/include/idle.h`).
//!
//! Each reactor waits on a set of its own: an event that other threads set, and its groups of sockets. What only polling
//! can tell, such as a doorbell in a guest's memory, is found after the longest sleep.

use std::cell::{Cell, OnceCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use spdk_control::event_fd::EventFd;
use spdk_control::nap::{Pace, Sleeper};
use spdk_sys as sys;

use crate::reactors;

/// Time without work before the first sleep: longer than the gaps within a sequence of calls.
const PATIENCE: Duration = Duration::from_millis(1);

/// Maximum duration of a sleep. Timed pollers run late by this at most.
const LONGEST: Duration = Duration::from_millis(1);

/// Maximum number of a core in DPDK (`RTE_MAX_LCORE`), plus one.
const CORES: usize = 1024;

/// Whether reactors may sleep.
static MAY_SLEEP: AtomicBool = AtomicBool::new(false);

static BEDS: [OnceLock<Bed>; CORES] = [const { OnceLock::new() }; CORES];

/// What others know of a reactor that can sleep.
struct Bed {
    sleeper: Sleeper<EventFd>,
    asleep_ticks: AtomicU64,
}

/// What a reactor itself knows.
struct Reactor {
    bed: &'static Bed,
    set: OwnedFd,
    pace: Pace,
    busy: Cell<u64>,
    since: Cell<u64>,
    listens: Cell<bool>,
}

thread_local! {
    /// None if the reactor cannot sleep: the process was out of descriptors.
    static REACTOR: OnceCell<Option<Reactor>> = const { OnceCell::new() };
}

/// Lets reactors sleep that have no work. Must be called before SPDK starts.
pub(crate) fn allow() {
    MAY_SLEEP.store(true, Ordering::Relaxed);
}

fn bed(core: u32) -> Option<&'static Bed> {
    BEDS.get(usize::try_from(core).ok()?)?.get()
}

/// Wakes the reactor of a core; see [`Sleeper::wake`]. Any thread.
pub(crate) fn wake(core: u32) {
    if let Some(bed) = bed(core) {
        bed.sleeper.wake();
    }
}

/// Returns the ticks for which the reactor of a core has slept. Any thread.
pub(crate) fn asleep_ticks(core: u32) -> u64 {
    bed(core).map_or(0, |bed| bed.asleep_ticks.load(Ordering::Relaxed))
}

impl Reactor {
    /// Prepares the calling thread, the reactor of this core.
    fn new(core: u32) -> Option<Self> {
        let slot = BEDS.get(usize::try_from(core).ok()?)?;
        let sleeper = Sleeper::new(EventFd::new().ok()?);
        // SAFETY: creates a descriptor; the result is checked.
        let set = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if set < 0 {
            return None;
        }
        // SAFETY: a descriptor that was just created, and that nobody else has.
        let set = unsafe { OwnedFd::from_raw_fd(set) };
        let bed = slot.get_or_init(|| Bed {
            sleeper,
            asleep_ticks: AtomicU64::new(0),
        });
        // A sleep that ends on time ends within microseconds, not within the default of 50.
        // SAFETY: sets a number of the calling thread.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        let reactor = Self {
            bed,
            set,
            pace: Pace {
                patience: reactors::ticks(PATIENCE),
                longest: reactors::ticks(LONGEST),
            },
            busy: Cell::new(0),
            since: Cell::new(0),
            listens: Cell::new(false),
        };
        let event = bed.sleeper.event().as_fd();
        reactor.watch(event).then_some(reactor)
    }

    /// Adds a descriptor to the set, from which the kernel removes it when it is closed. False if the system is out of
    /// memory or of watches.
    fn watch(&self, fd: BorrowedFd<'_>) -> bool {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        let (set, fd) = (self.set.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: both descriptors are open, and `event` is valid during the call.
        unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut event) == 0 }
    }

    /// Takes note of a turn, and may sleep after it. Returns the ticks asleep.
    fn turn(&self, busy: u64, now: u64) -> u64 {
        if busy != self.busy.replace(busy) {
            self.since.set(now);
            if self.listens.replace(false) {
                self.bed.sleeper.rise(false);
            }
            return 0;
        }
        let Some(nap) = self.pace.nap(now.saturating_sub(self.since.get())) else {
            return 0;
        };
        if !self.listens.replace(true) {
            self.bed.sleeper.listen();
            return 0;
        }
        let is_woken = self.wait(reactors::duration(nap));
        self.bed.sleeper.rise(is_woken);
        self.listens.set(false);
        // SAFETY: reads a counter; the environment is initialized while reactors run.
        let slept = unsafe { sys::spdk_get_ticks() }.saturating_sub(now);
        self.bed.asleep_ticks.fetch_add(slept, Ordering::Relaxed);
        slept
    }

    /// Waits until a descriptor of the set is readable, or for this long. Returns whether one is.
    fn wait(&self, limit: Duration) -> bool {
        let mut fds = libc::pollfd {
            fd: self.set.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = libc::timespec {
            tv_sec: 0,
            // Below a second by `LONGEST`.
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: one descriptor, and a time that outlives the call; no signal mask.
        unsafe { libc::ppoll(&mut fds, 1, &limit, std::ptr::null()) > 0 }
    }
}

/// Runs `use_it` with the reactor of the calling thread. `None` if it cannot sleep.
fn with_reactor<T>(core: u32, use_it: impl FnOnce(&Reactor) -> T) -> Option<T> {
    if !MAY_SLEEP.load(Ordering::Relaxed) {
        return None;
    }
    // Fails only while the thread ends.
    let reactor = |reactor: &OnceCell<Option<Reactor>>| {
        let reactor = reactor.get_or_init(|| Reactor::new(core)).as_ref();
        reactor.map(use_it)
    };
    REACTOR.try_with(reactor).ok().flatten()
}

/// A turn of this core's reactor has ended. May sleep; returns for how many ticks it did.
///
/// # Safety
/// Called on that reactor's thread, between its turns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_idle_turn(core: u32, busy_tsc: u64, now: u64) -> u64 {
    with_reactor(core, |reactor| reactor.turn(busy_tsc, now)).unwrap_or(0)
}

/// The descriptor ends sleeps of the calling reactor while it is readable.
///
/// # Safety
/// `fd` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_idle_watch(fd: i32) {
    // SAFETY: reads the number of the calling thread's core.
    let core = unsafe { sys::spdk_env_get_current_core() };
    if core == u32::MAX {
        return;
    }
    // SAFETY: open by the caller's contract.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // Without a watch the end of the sleep finds what it is readable for.
    with_reactor(core, |reactor| reactor.watch(fd));
}

/// Wakes the reactor of a core.
///
/// # Safety
/// None: callable on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_idle_wake(core: u32) {
    wake(core);
}
