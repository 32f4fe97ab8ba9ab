//! A value that many threads may use until one thread closes it.
//!
//! ```text
//! open ── close() ─► closing (no one enters) ── last guard dropped ─► value taken
//! ```
//!
//! The rings live in SPDK's memory, which goes when SPDK does, while handles to
//! them may live longer. Entering costs two atomic operations and never waits.

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) struct Gate<T> {
    inside: AtomicUsize,
    closed: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: `value` is shared as `&T` through guards (hence `T: Sync`), and moved
// out to the closing thread once no guard exists (hence `T: Send`).
unsafe impl<T: Send + Sync> Sync for Gate<T> {}

/// Keeps the value from being taken while it lives.
pub(crate) struct Guard<'a, T>(&'a Gate<T>);

impl<T> Gate<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            inside: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            value: UnsafeCell::new(Some(value)),
        }
    }

    /// The value, unless the gate is closed.
    pub(crate) fn enter(&self) -> Option<Guard<'_, T>> {
        // Counted before looking: a closer that has not seen the count has not
        // yet looked at it when `closed` is read here (both are SeqCst).
        self.inside.fetch_add(1, Ordering::SeqCst);
        let guard = Guard(self);
        if self.closed.load(Ordering::SeqCst) {
            return None;
        }
        Some(guard)
    }

    /// Lets no one in any more, waits for those inside to leave, and takes the
    /// value. `None` if it was closed before. Not for a reactor: it waits.
    pub(crate) fn close(&self) -> Option<T> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return None;
        }
        while self.inside.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
        // SAFETY: `closed` was set by this call alone and no guard is left;
        // whoever enters from now on sees `closed` and does not touch `value`.
        unsafe { (*self.value.get()).take() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the gate was open when this guard was counted, so the value is
        // there and stays until the guard is dropped.
        match unsafe { &*self.0.value.get() } {
            Some(value) => value,
            None => unreachable!("the value is taken only when no guard is left"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn nobody_uses_the_value_after_close_has_returned() {
        let gate = Arc::new(Gate::new(Arc::new(())));
        let users: Vec<_> = (0..4)
            .map(|_| {
                let gate = gate.clone();
                std::thread::spawn(move || {
                    let mut entered = 0_u64;
                    while let Some(guard) = gate.enter() {
                        assert!(Arc::strong_count(&guard) >= 1);
                        entered += 1;
                    }
                    entered
                })
            })
            .collect();
        while gate.inside.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let value = gate.close().expect("closed for the first time");
        assert_eq!(Arc::strong_count(&value), 1);
        assert!(gate.enter().is_none());
        assert!(gate.close().is_none());
        for user in users {
            user.join().expect("no user panicked");
        }
    }
}
