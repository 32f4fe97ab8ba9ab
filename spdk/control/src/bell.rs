//! How the control side learns that results are ready: a caller polls while a result is due soon, and
//! sleeps on an event otherwise.
//!
//! ```text
//!            watch                         timeout: clear flag, check again
//!  asleep ────────► watched (one caller) ──────────────────────────────────► asleep
//!    │ push, ring                                 results left: ring
//!    └────────────► rung ── hush, take ─► asleep
//! ```
//!
//! The app thread signals the event only while no caller watches, so a result that arrives at once costs the reactor
//! no system call and its caller no sleep. No wakeup is lost in the race between them: the app thread pushes and
//! then reads the `watched` flag, a watcher clears the flag and then checks once more, and with a SeqCst fence in
//! between on both sides at least one sees the other's write.

use std::time::{Duration, Instant};

use crate::sync::{AtomicBool, Ordering, TryLock, TryLockGuard, fence};

/// How long a caller polls before it sleeps. A call takes some microseconds, and many times that if its steps
/// alternate with I/O.
const WATCH: Duration = Duration::from_micros(50);

/// An event that wakes its sleeper once each time that it is set while clear.
pub trait Event {
    /// Wakes the sleeper. Must not block: the app thread calls it.
    fn set(&self);
    /// Resets the event; it wakes nobody until it is set again.
    fn clear(&self);
}

/// Signals the control side that results are ready, and hands out the right to take them.
pub struct Bell<E> {
    event: E,
    rung: AtomicBool,
    watched: AtomicBool,
    /// Whether callers may poll. Not on a reactor's core, where a polling caller would take the reactor's time.
    may_watch: bool,
    taking: TryLock,
}

/// The exclusive right to take results out. At most one thread holds it.
pub struct Taking<'a>(#[expect(dead_code, reason = "held, not read")] TryLockGuard<'a>);

impl<E: Event> Bell<E> {
    /// Creates an unsignalled bell. `may_watch`: callers run on cores without a reactor.
    pub fn new(event: E, may_watch: bool) -> Self {
        Self {
            event,
            rung: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            may_watch,
            taking: TryLock::new(),
        }
    }

    /// Returns the event to sleep on.
    pub fn event(&self) -> &E {
        &self.event
    }

    /// Signals the event unless a caller watches. Called on the app thread after a result has been pushed.
    pub fn ring(&self) {
        // Orders the caller's push before the load of `watched`: see the module's documentation.
        fence(Ordering::SeqCst);
        if self.watched.load(Ordering::SeqCst) || self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        self.event.set();
    }

    /// Resets the bell. Called before results are taken out, so that a result pushed from now on signals again.
    pub fn hush(&self) {
        self.event.clear();
        // A swap, not a store: it reads the `true` of the last `ring` that found `rung` set already, and thus
        // acquires the push before that `ring`. The next taker sees that result, which was not signalled.
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// Takes the right to take results out. `None` while a watcher holds it, which leaves no result unsignalled.
    pub fn try_take(&self) -> Option<Taking<'_>> {
        self.taking.try_lock().map(Taking)
    }

    /// Polls for up to `WATCH` unless another caller does: runs `take` until `done`. Signals the event if results
    /// are `left` after that.
    pub fn watch(
        &self,
        mut take: impl FnMut(&Taking<'_>),
        mut done: impl FnMut() -> bool,
        left: impl Fn() -> bool,
    ) {
        let Some(taking) = self.may_watch.then(|| self.try_take()).flatten() else {
            return;
        };
        self.watched.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        loop {
            take(&taking);
            // Under loom one iteration stands for any number of them.
            if done() || cfg!(loom) || begun.elapsed() >= WATCH {
                break;
            }
            std::hint::spin_loop();
        }
        self.watched.store(false, Ordering::SeqCst);
        drop(taking);
        fence(Ordering::SeqCst);
        if left() {
            self.ring();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::event_fd::EventFd;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    fn bell(may_watch: bool) -> Bell<EventFd> {
        Bell::new(EventFd::new().expect("there are descriptors"), may_watch)
    }

    fn rings(bell: &Bell<EventFd>) -> bool {
        bell.event().is_set()
    }

    #[test]
    fn nobody_is_woken_while_somebody_watches() {
        let bell = bell(true);
        bell.watch(|_| bell.ring(), || true, || false);
        assert!(!rings(&bell));
        bell.ring();
        assert!(rings(&bell));
        bell.hush();
        assert!(!rings(&bell));
    }

    #[test]
    fn what_a_watcher_leaves_behind_rings() {
        let bell = bell(true);
        bell.watch(|_| {}, || true, || true);
        assert!(rings(&bell));
    }

    #[test]
    fn where_callers_may_not_watch_every_answer_rings() {
        let bell = bell(false);
        bell.watch(|_| panic!("it watches"), || true, || true);
        assert!(!rings(&bell));
        bell.ring();
        assert!(rings(&bell));
    }

    #[test]
    fn no_answer_is_lost_between_watching_and_sleeping() {
        const ANSWERS: u64 = 200_000;
        let bell = Arc::new(bell(true));
        let pushed = Arc::new(AtomicU64::new(0));
        let taken = Arc::new(AtomicU64::new(0));
        let producer = std::thread::spawn({
            let (bell, pushed) = (bell.clone(), pushed.clone());
            move || {
                for _ in 0..ANSWERS {
                    pushed.fetch_add(1, Ordering::Release);
                    bell.ring();
                }
            }
        });
        let take = |_: &Taking<'_>| {
            taken.fetch_max(pushed.load(Ordering::Acquire), Ordering::AcqRel);
        };
        let left = || taken.load(Ordering::Acquire) < pushed.load(Ordering::Acquire);
        let patience = Instant::now();
        while taken.load(Ordering::Acquire) < ANSWERS {
            bell.watch(take, || !left(), left);
            while !rings(&bell) && taken.load(Ordering::Acquire) < ANSWERS {
                // Invariant: once the producer has finished, every result is either taken or signalled.
                assert!(
                    !producer.is_finished() || !left() || rings(&bell),
                    "an answer did not ring"
                );
                assert!(patience.elapsed() < Duration::from_secs(60));
            }
            bell.hush();
            if let Some(taking) = bell.try_take() {
                take(&taking);
            }
        }
        producer.join().expect("it does not panic");
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::sync::AtomicUsize;
    use loom::sync::Arc;
    use loom::thread;

    struct Flag(AtomicBool);

    impl Event for Flag {
        // The kernel serializes reads and writes of an eventfd by a lock.
        fn set(&self) {
            self.0.swap(true, Ordering::AcqRel);
        }

        fn clear(&self) {
            self.0.swap(false, Ordering::AcqRel);
        }
    }

    /// Counts of results pushed and taken out.
    struct Answers {
        bell: Bell<Flag>,
        pushed: AtomicUsize,
        taken: AtomicUsize,
    }

    impl Answers {
        fn none() -> Arc<Self> {
            Arc::new(Self {
                bell: Bell::new(Flag(AtomicBool::new(false)), true),
                pushed: AtomicUsize::new(0),
                taken: AtomicUsize::new(0),
            })
        }

        fn push(&self) {
            self.pushed.fetch_add(1, Ordering::Release);
            self.bell.ring();
        }

        fn take(&self, _: &Taking<'_>) {
            let pushed = self.pushed.load(Ordering::Acquire);
            self.taken.store(pushed, Ordering::Release);
        }

        fn left(&self) -> bool {
            self.taken.load(Ordering::Acquire) < self.pushed.load(Ordering::Acquire)
        }

        fn watch(&self) {
            self.bell
                .watch(|taking| self.take(taking), || !self.left(), || self.left());
        }

        /// What a sleeper does once it wakes.
        fn wake(&self) {
            if self.bell.event().0.load(Ordering::Acquire) {
                self.bell.hush();
                if let Some(taking) = self.bell.try_take() {
                    self.take(&taking);
                }
            }
        }
    }

    #[test]
    fn an_answer_is_taken_by_a_watcher_or_rings() {
        loom::model(|| {
            let answers = Answers::none();
            let app = {
                let answers = Arc::clone(&answers);
                thread::spawn(move || answers.push())
            };
            answers.watch();
            app.join().expect("it does not panic");
            answers.wake();
            assert!(!answers.left());
        });
    }

    #[test]
    fn no_answer_is_left_asleep_between_a_watcher_and_a_sleeper() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let answers = Answers::none();
            let app = {
                let answers = Arc::clone(&answers);
                thread::spawn(move || {
                    answers.push();
                    answers.push();
                })
            };
            let watcher = {
                let answers = Arc::clone(&answers);
                thread::spawn(move || answers.watch())
            };
            answers.wake();
            app.join().expect("it does not panic");
            watcher.join().expect("it does not panic");
            answers.wake();
            assert!(!answers.left());
        });
    }
}
