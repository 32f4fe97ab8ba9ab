//! When a reactor without work sleeps, for how long, and how others wake it.
//!
//! ```text
//!            no work for a while           a whole turn more, no work
//!  polling ────────────────────► listening ─────────────────────────► asleep ─┐
//!     ▲  └───────────────────────────┘ work, or noted                         │ event, descriptor, or time over
//!     └───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! No work is missed: others queue their work and then look whether the reactor listens, while it first listens and then
//! looks for work in a whole turn. With a SeqCst fence in between on both sides at least one sees the other's write. A
//! poller that looks only now and then may leave work behind in that turn: who queues something leaves a note as well, and
//! the reactor goes on polling for a while after each note and each event.

use crate::bell::Event;
use crate::sync::{AtomicBool, Ordering, fence};

/// How long a reactor sleeps, in ticks of its clock.
#[derive(Debug, Clone, Copy)]
pub struct Durations {
    /// Time without work before the first sleep.
    pub threshold: u64,
    /// Time without work after which a sleep has its maximum duration; before, it is shorter in proportion.
    pub full: u64,
    /// Maximum duration of one sleep.
    pub longest: u64,
}

impl Durations {
    /// Returns for how long a reactor may sleep that has had no work for `idle` ticks. `None`: it must poll.
    pub fn after(&self, idle: u64) -> Option<u64> {
        let part = u128::from(idle) * u128::from(self.longest) / u128::from(self.full.max(1));
        let sleep = u64::try_from(part).unwrap_or(u64::MAX).min(self.longest);
        (idle >= self.threshold).then_some(sleep.max(1))
    }
}

/// The state by which other threads wake a reactor.
pub struct Sleeper<E> {
    event: E,
    listens: AtomicBool,
    noted: AtomicBool,
}

impl<E: Event> Sleeper<E> {
    /// Creates one that polls.
    pub fn new(event: E) -> Self {
        Self {
            event,
            listens: AtomicBool::new(false),
            noted: AtomicBool::new(false),
        }
    }

    /// Returns the event that ends a sleep.
    pub fn event(&self) -> &E {
        &self.event
    }

    /// Others set the event from now on, and the reactor looks for work once more before it sleeps. False if there was a
    /// note, which is taken: the reactor polls on instead.
    pub fn listen(&self) -> bool {
        self.listens.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let is_noted = self.noted.load(Ordering::Relaxed);
        if is_noted {
            self.noted.swap(false, Ordering::AcqRel);
            self.resume_polling(false);
        }
        !is_noted
    }

    /// The reactor polls again. `is_woken`: it has found an event, or a descriptor that is ready.
    pub fn resume_polling(&self, is_woken: bool) {
        self.listens.store(false, Ordering::SeqCst);
        if is_woken {
            self.event.clear();
        }
    }

    /// Wakes the reactor if it sleeps or is about to. Called on any thread after its work has been queued.
    pub fn wake(&self) {
        // Read first: many may write at a high rate.
        if !self.noted.load(Ordering::Relaxed) {
            self.noted.store(true, Ordering::Relaxed);
        }
        // Orders the work and the note before the load: see the module's documentation.
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
    fn a_sleep_is_in_proportion_to_the_time_without_work() {
        let durations = Durations {
            threshold: 1000,
            full: 80_000,
            longest: 5000,
        };
        for (idle, sleep) in [
            (0, None),
            (999, None),
            (1000, Some(62)),
            (16_000, Some(1000)),
            (80_000, Some(5000)),
            (u64::MAX, Some(5000)),
        ] {
            assert_eq!(durations.after(idle), sleep, "{idle}");
        }
    }

    #[test]
    fn one_that_listens_is_woken_once_and_one_that_does_not_finds_a_note() {
        let sleeper = Sleeper::new(EventFd::new().expect("there are descriptors"));
        sleeper.wake();
        assert!(!sleeper.event().is_set());
        assert!(!sleeper.listen());
        assert!(sleeper.listen());
        sleeper.wake();
        assert!(sleeper.event().is_set());
        sleeper.resume_polling(true);
        assert!(!sleeper.event().is_set());
        assert!(!sleeper.listen());
        // A waker that was slower than the end of the sleep leaves the event for the next one, which ends it.
        sleeper.event().set();
        assert!(sleeper.listen());
        sleeper.resume_polling(true);
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

    /// The reactor listens twice, with the end of a sleep in between: it polls, has an event, or has seen the work.
    #[test]
    fn work_that_the_last_turn_has_not_seen_ends_the_sleep() {
        loom::model(|| {
            let sleeper = Arc::new(Sleeper::new(Flag(AtomicBool::new(false))));
            let work = Arc::new(AtomicBool::new(false));
            let other = thread::spawn({
                let (sleeper, work) = (sleeper.clone(), work.clone());
                move || {
                    work.store(true, Ordering::Relaxed);
                    sleeper.wake();
                }
            });
            let (mut sleeps, mut seen) = (true, false);
            for is_last in [false, true] {
                sleeps = sleeper.listen();
                seen = work.load(Ordering::Relaxed);
                if !sleeps || seen || is_last {
                    break;
                }
                // The sleep ends: after an event the reactor polls for a while.
                let is_woken = sleeper.event().0.load(Ordering::SeqCst);
                sleeper.resume_polling(is_woken);
                sleeps = !is_woken;
                if is_woken {
                    break;
                }
            }
            other.join().expect("it does not panic");
            assert!(!sleeps || seen || sleeper.event().0.load(Ordering::SeqCst));
        });
    }
}
