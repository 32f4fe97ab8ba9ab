//! Wakes that found the ring full. After a missed wake every task is polled.

use crate::sync::{AtomicBool, Ordering};

/// Set while a wake has been missed.
pub struct Missed(AtomicBool);

impl Default for Missed {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl Missed {
    /// Records a missed wake. Called after the state that the wake announces has been written. Any thread.
    pub fn note(&self) {
        // A swap, not a store: a read-modify-write continues the release sequence of earlier notes, which a store
        // would hide.
        self.0.swap(true, Ordering::AcqRel);
    }

    /// Returns whether a wake was missed since the last call. If so, the state that the wake announced is visible.
    /// App thread.
    pub fn take(&self) -> bool {
        // A swap: either it acquires a concurrent `note`, whose state is then visible, or that note leaves the flag
        // set.
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::sync::AtomicUsize;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn what_was_done_before_a_wake_is_seen_by_who_takes_it() {
        loom::model(|| {
            let (missed, done) = (Arc::new(Missed::default()), Arc::new(AtomicUsize::new(0)));
            let wakers = [(); 2].map(|()| {
                let (missed, done) = (missed.clone(), done.clone());
                thread::spawn(move || {
                    done.fetch_add(1, Ordering::Relaxed);
                    missed.note();
                })
            });
            let mut seen = 0;
            if missed.take() {
                seen = done.load(Ordering::Relaxed);
                assert!(seen >= 1);
            }
            for waker in wakers {
                waker.join().expect("it does not panic");
            }
            // No note is lost.
            if missed.take() {
                seen = done.load(Ordering::Relaxed);
            }
            assert_eq!(seen, 2);
        });
    }
}
