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

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::error::Error;

/// How long a caller looks before it sleeps: a call takes some microseconds, and many times that where
/// its steps alternate with I/O.
const WATCH: Duration = Duration::from_micros(50);

/// An eventfd that the app thread writes to, and the right to take answers out.
pub(crate) struct Bell {
    fd: OwnedFd,
    rung: AtomicBool,
    watched: AtomicBool,
    /// Whether callers may watch: not on a reactor's core, which they would keep from its work.
    may_watch: bool,
    taking: Mutex<()>,
}

/// The right to take answers out. One thread at a time has it.
pub(crate) struct Taking<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

impl Bell {
    pub(crate) fn new(may_watch: bool) -> Result<Self, Error> {
        // SAFETY: plain values; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            let errno = std::io::Error::last_os_error().raw_os_error();
            return Err(Error::new("create eventfd", errno.unwrap_or(libc::EIO)));
        }
        Ok(Self {
            // SAFETY: a descriptor that was just made and that nobody else has.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            rung: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            may_watch,
            taking: Mutex::new(()),
        })
    }

    /// Another descriptor of the same eventfd, to sleep on.
    pub(crate) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Wakes who sleeps, unless somebody watches. After an answer has been pushed.
    pub(crate) fn ring(&self) {
        // Between the push before and the look at the flag: see above.
        fence(Ordering::SeqCst);
        if self.watched.load(Ordering::SeqCst) || self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let one = 1_u64.to_ne_bytes();
        // SAFETY: an open eventfd, and eight readable bytes. It does not block,
        // and cannot fail: the counter is reset before `rung` is.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Ends a ring. Before answers are taken out: what is pushed from now on rings again.
    pub(crate) fn hush(&self) {
        let mut count = [0_u8; 8];
        // SAFETY: an open eventfd, and eight writable bytes. Empty is no error.
        unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        // A swap, so that it reads what the last to find `rung` set has written: the
        // answer that was pushed without ringing is seen by who takes out next.
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// The right to take answers out, unless a watcher has it, who leaves none behind.
    pub(crate) fn try_take(&self) -> Option<Taking<'_>> {
        self.taking.try_lock().map(Taking)
    }

    /// Watches for a moment, if nobody else does: takes answers out by `take` until `done`. Then rings
    /// if some are `left`.
    pub(crate) fn watch(
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
            if done() || begun.elapsed() >= WATCH {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    fn bell(may_watch: bool) -> Bell {
        Bell::new(may_watch).expect("there are descriptors")
    }

    fn rings(bell: &Bell) -> bool {
        let mut poll = libc::pollfd {
            fd: bell.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one open descriptor, and no wait.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
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
