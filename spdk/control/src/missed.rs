//! Wakes that found no room in the ring: after one, each task is looked at.

use crate::sync::{AtomicBool, Ordering};

/// Whether some wake was missed.
pub struct Missed(AtomicBool);

impl Default for Missed {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl Missed {
    /// One was. After what it is about has been done. Any thread.
    pub fn note(&self) {
        // A swap, which hands on what an earlier one has told: a store would hide it.
        self.0.swap(true, Ordering::AcqRel);
    }

    /// Whether one was since the last call; what it is about is then seen. On the app thread.
    pub fn take(&self) -> bool {
        // A swap, so that what was done before a wake that is missed right now is seen, or the flag stays set.
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
            // None is left behind unseen.
            if missed.take() {
                seen = done.load(Ordering::Relaxed);
            }
            assert_eq!(seen, 2);
        });
    }
}
