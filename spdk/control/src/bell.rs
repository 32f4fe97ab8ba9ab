//! How the control side learns that answers are there: it looks while an answer is due any moment,
//! and sleeps until it is woken after that.
//!
//! ```text
//!            watch                         over: flag down, then a last look
//!  asleep ────────► watched (one caller) ──────────────────────────────────► asleep
//!    │ push, ring                                 answers left: ring
//!    └────────────► rung ── hush, take ─► asleep
//! ```
//!
//! The app thread rings only if nobody watches, so that an answer that comes at once costs the reactor
//! no system call, and its caller no sleep. None is lost: the app thread pushes and then reads the
//! flag, a watcher lowers the flag and then looks once more, so one of them sees the other.

use std::time::{Duration, Instant};

use crate::sync::{AtomicBool, Ordering, TryLock, TryLockGuard, fence};

/// How long a caller looks before it sleeps: a call takes some microseconds, and many times that where
/// its steps alternate with I/O.
const WATCH: Duration = Duration::from_micros(50);

/// What wakes who sleeps on it, once for each time that it is set while it is clear.
pub trait Event {
    /// Wakes the sleeper. Must not block: the app thread calls it.
    fn set(&self);
    /// Nothing wakes until it is set again.
    fn clear(&self);
}

/// Wakes the control side by its event; and the right to take answers out.
pub struct Bell<E> {
    event: E,
    rung: AtomicBool,
    watched: AtomicBool,
    /// Whether callers may watch: not on a reactor's core, which they would keep from its work.
    may_watch: bool,
    taking: TryLock,
}

/// The right to take answers out. One thread at a time has it.
pub struct Taking<'a>(#[expect(dead_code, reason = "held, not read")] TryLockGuard<'a>);

impl<E: Event> Bell<E> {
    /// A quiet one. `may_watch`: callers run on other cores than reactors.
    pub fn new(event: E, may_watch: bool) -> Self {
        Self {
            event,
            rung: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            may_watch,
            taking: TryLock::new(),
        }
    }

    /// What to sleep on.
    pub fn event(&self) -> &E {
        &self.event
    }

    /// Wakes who sleeps, unless somebody watches. After an answer has been pushed; on the app thread.
    pub fn ring(&self) {
        // Between the push before and the look at the flag: see above.
        fence(Ordering::SeqCst);
        if self.watched.load(Ordering::SeqCst) || self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        self.event.set();
    }

    /// Ends a ring. Before answers are taken out: what is pushed from now on rings again.
    pub fn hush(&self) {
        self.event.clear();
        // A swap, so that it reads what the last to find `rung` set has written: the
        // answer that was pushed without ringing is seen by who takes out next.
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// The right to take answers out, unless a watcher has it, who leaves none behind.
    pub fn try_take(&self) -> Option<Taking<'_>> {
        self.taking.try_lock().map(Taking)
    }

    /// Watches for a moment, if nobody else does: takes answers out by `take` until `done`. Then rings
    /// if some are `left`.
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
            // In the model one look stands for any number of them.
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
                // Nothing is left that has not rung, once the producer has looked.
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
        // The kernel orders reads and writes of an eventfd by a lock.
        fn set(&self) {
            self.0.swap(true, Ordering::AcqRel);
        }

        fn clear(&self) {
            self.0.swap(false, Ordering::AcqRel);
        }
    }

    /// Answers that were pushed, and that were taken out.
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

        /// What a sleeper does once it is awake.
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
