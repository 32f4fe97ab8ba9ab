//! Shared access to a value that many threads use until one thread closes it.
//!
//! ```text
//! open ── close() ─► closing (no one enters) ── last guard dropped ─► value taken
//! ```
//!
//! The rings live in SPDK's memory, whose lifetime ends with SPDK, while handles to the rings may outlive it.
//! Entering costs two atomic operations and never waits.

use std::ops::Deref;

use crate::sync::{AtomicUsize, ConstPtr, Ordering, UnsafeCell, yield_now};

/// The top bit marks the gate as closed, the others count guards. Both are in one word, so that entering cannot race
/// with closing.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// A value, and the count of threads that use it.
pub struct Gate<T> {
    state: AtomicUsize,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: `value` is shared as `&T` through guards (hence `T: Sync`), and moved out to the closing thread once no
// guard exists (hence `T: Send`).
unsafe impl<T: Send + Sync> Sync for Gate<T> {}

/// Keeps the value from being taken for the guard's lifetime.
pub struct Guard<'a, T> {
    gate: &'a Gate<T>,
    /// `None` if the gate was closed at entry, and once the guard leaves.
    value: Option<ConstPtr<Option<T>>>,
}

impl<T> Gate<T> {
    /// Creates an open gate.
    pub fn new(value: T) -> Self {
        Self {
            state: AtomicUsize::new(0),
            value: UnsafeCell::new(Some(value)),
        }
    }

    /// Enters; `None` if the gate is closed. Any thread.
    pub fn enter(&self) -> Option<Guard<'_, T>> {
        let before = self.state.fetch_add(1, Ordering::Acquire);
        let mut guard = Guard {
            gate: self,
            value: None,
        };
        if before & CLOSED != 0 {
            return None;
        }
        guard.value = Some(self.value.get());
        Some(guard)
    }

    /// Closes the gate, waits until the last guard is dropped, and takes the value. `None` if the gate was closed
    /// before. Blocks, so it must not run on a reactor.
    pub fn close(&self) -> Option<T> {
        if self.state.fetch_or(CLOSED, Ordering::Relaxed) & CLOSED != 0 {
            return None;
        }
        // Acquire, paired with the Release in each guard's drop: all uses of the value happen before it is taken.
        while self.state.load(Ordering::Acquire) != CLOSED {
            yield_now();
        }
        let value = self.value.get_mut();
        // SAFETY: this call alone has set CLOSED, and has since seen the guard count at zero, so nobody else uses
        // `value`. An `enter` from now on sees CLOSED and does not touch it.
        unsafe { value.deref() }.take()
    }

    #[cfg(all(test, not(loom)))]
    fn is_empty(&self) -> bool {
        self.state.load(Ordering::Acquire) & !CLOSED == 0
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        self.gate.state.fetch_sub(1, Ordering::Release);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `self.value` is `Some` only in a guard that was counted while the gate was open. `close` waits
        // for that guard, so the cell is neither written nor taken while this guard lives.
        let value = self.value.as_ref().map(|value| unsafe { value.deref() });
        match value {
            Some(Some(value)) => value,
            _ => unreachable!("the value is taken only when no guard is left"),
        }
    }
}

#[cfg(all(test, not(loom)))]
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
        while gate.is_empty() {
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

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Two threads use the value while a third closes the gate. Loom's cell reports any use that races with the
    /// take.
    #[test]
    fn nobody_uses_what_has_been_taken() {
        loom::model(|| {
            let gate = Arc::new(Gate::new(7));
            let users = [(); 2].map(|()| {
                let gate = Arc::clone(&gate);
                thread::spawn(move || {
                    if let Some(guard) = gate.enter() {
                        assert_eq!(*guard, 7);
                    }
                })
            });
            assert_eq!(gate.close(), Some(7));
            assert!(gate.enter().is_none());
            for user in users {
                user.join().expect("it does not panic");
            }
        });
    }

    #[test]
    fn one_alone_takes_it() {
        loom::model(|| {
            let gate = Arc::new(Gate::new(7));
            let other = {
                let gate = Arc::clone(&gate);
                thread::spawn(move || gate.close())
            };
            let taken = [gate.close(), other.join().expect("it does not panic")];
            assert_eq!(taken.iter().flatten().count(), 1);
        });
    }
}
