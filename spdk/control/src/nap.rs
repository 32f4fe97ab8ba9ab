//! When a reactor without work sleeps, for how long, and how others wake it.
//!
//! ```text
//!            no work for a while           a whole turn more, no work
//!  polling ────────────────────► listening ─────────────────────────► asleep ─┐
//!     ▲  └───────────────────────────┘ work                                   │ event, descriptor, or time over
//!     └───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! No work is missed: others queue their work and then look whether the reactor listens, while it first listens and then
//! looks for work in a whole turn. With a SeqCst fence in between on both sides at least one sees the other's write.

use crate::bell::Event;
use crate::sync::{AtomicBool, Ordering, fence};

/// How long a reactor sleeps, in ticks of its clock.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time without work before the first sleep.
    pub patience: u64,
    /// Maximum duration of one sleep.
    pub longest: u64,
}

/// A sleep lasts at most this part of the time without work before it: what completes without an event, such as I/O of
/// a disk, is found late by this part of its own duration at most.
const SHARE: u64 = 16;

impl Pace {
    /// Returns for how long a reactor may sleep that has had no work for `idle` ticks. `None`: it must poll.
    pub fn nap(&self, idle: u64) -> Option<u64> {
        (idle >= self.patience).then(|| (idle / SHARE).clamp(1, self.longest))
    }
}

/// The way to wake a reactor.
pub struct Sleeper<E> {
    event: E,
    listens: AtomicBool,
}

impl<E: Event> Sleeper<E> {
    /// Creates one that polls.
    pub fn new(event: E) -> Self {
        Self {
            event,
            listens: AtomicBool::new(false),
        }
    }

    /// Returns the event that ends a sleep.
    pub fn event(&self) -> &E {
        &self.event
    }

    /// Others set the event from now on. The reactor looks for work once more before it sleeps.
    pub fn listen(&self) {
        self.listens.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The reactor polls again. `is_woken`: it has found an event, or a descriptor that is ready.
    pub fn rise(&self, is_woken: bool) {
        self.listens.store(false, Ordering::SeqCst);
        if is_woken {
            self.event.clear();
        }
    }

    /// Wakes the reactor if it sleeps or is about to. Called on any thread after its work has been queued.
    pub fn wake(&self) {
        // Orders the work before the load of `listens`: see the module's documentation.
        fence(Ordering::SeqCst);
        if self.listens.load(Ordering::Relaxed) && self.listens.swap(false, Ordering::AcqRel) {
            self.event.set();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::event_fd::EventFd;

    #[test]
    fn a_sleep_is_a_part_of_the_time_without_work() {
        let pace = Pace {
            patience: 1000,
            longest: 5000,
        };
        for (idle, nap) in [
            (0, None),
            (999, None),
            (1000, Some(62)),
            (16_000, Some(1000)),
            (80_000, Some(5000)),
            (u64::MAX, Some(5000)),
        ] {
            assert_eq!(pace.nap(idle), nap, "{idle}");
        }
    }

    #[test]
    fn only_one_that_listens_is_woken_and_once() {
        let sleeper = Sleeper::new(EventFd::new().expect("there are descriptors"));
        sleeper.wake();
        assert!(!sleeper.event().is_set());
        sleeper.listen();
        sleeper.wake();
        assert!(sleeper.event().is_set());
        sleeper.rise(true);
        assert!(!sleeper.event().is_set());
        sleeper.wake();
        assert!(!sleeper.event().is_set());
        // A waker that was slower than the end of the sleep leaves the event for the next one, which ends it.
        sleeper.event().set();
        sleeper.listen();
        sleeper.rise(true);
        assert!(!sleeper.event().is_set());
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    struct Flag(AtomicBool);

    impl Event for Flag {
        fn set(&self) {
            self.0.store(true, Ordering::SeqCst);
        }

        fn clear(&self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }

    #[test]
    fn work_that_the_last_turn_has_not_seen_ends_the_sleep() {
        loom::model(|| {
            let sleeper = Arc::new(Sleeper::new(Flag(AtomicBool::new(false))));
            let work = [0, 1].map(|_| Arc::new(AtomicBool::new(false)));
            let others = work.clone().map(|work| {
                let sleeper = sleeper.clone();
                thread::spawn(move || {
                    work.store(true, Ordering::Relaxed);
                    sleeper.wake();
                })
            });
            sleeper.listen();
            let seen = work.each_ref().map(|work| work.load(Ordering::Relaxed));
            for other in others {
                other.join().expect("it does not panic");
            }
            assert!(seen == [true; 2] || sleeper.event().0.load(Ordering::SeqCst));
        });
    }
}
