//! The one bridge from a C callback to a future.
//!
//! ```text
//! completion() ─► Promise ── into_raw ─► C holds it ── callback: from_raw, complete ─┐
//!            └──► Pending ◄──────────────────── value, wake ─────────────────────────┘
//! ```
//!
//! What C can see is the heap cell alone, never part of a future: a future that
//! is dropped while C still holds the cell leaves the cell to the callback. A
//! promise that is dropped (its task panicked) ends the wait with an error.
//! All of it stays on SPDK's app thread (`Rc`, so the compiler sees to it).

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Slot<T> {
    value: Cell<Option<T>>,
    /// No value will come any more.
    ended: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The sending half, which C holds as its callback argument.
pub struct Promise<T>(Rc<Slot<T>>);

/// The receiving half.
pub struct Pending<T>(Rc<Slot<T>>);

/// Nobody will bring the value any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned;

/// A value that a C callback will bring.
pub fn completion<T: 'static>() -> (Promise<T>, Pending<T>) {
    let slot = Rc::new(Slot {
        value: Cell::new(None),
        ended: Cell::new(false),
        waker: RefCell::new(None),
    });
    (Promise(slot.clone()), Pending(slot))
}

impl<T> Promise<T> {
    /// The callback argument to hand to C. Whoever does not get a callback
    /// takes it back with [`Promise::from_raw`].
    #[must_use]
    pub fn into_raw(self) -> *mut c_void {
        let raw = Rc::as_ptr(&self.0);
        // Its share of the cell goes along.
        std::mem::forget(self);
        raw.cast_mut().cast()
    }

    /// Takes the promise back from C.
    ///
    /// # Safety
    /// `raw` comes from [`Promise::into_raw`] of the same `T`, on this thread,
    /// and is taken back once.
    pub unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: the caller's contract is that of Rc::from_raw.
        Self(unsafe { Rc::from_raw(raw.cast_const().cast()) })
    }

    /// Gives the value to whoever waits; a receiver that has gone is normal.
    pub fn complete(self, value: T) {
        self.0.value.set(Some(value));
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.0.ended.set(true);
        let waker = self.0.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Abandoned>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.value.take() {
            Some(value) => Poll::Ready(Ok(value)),
            None if self.0.ended.get() => Poll::Ready(Err(Abandoned)),
            None => {
                *self.0.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn poll<T: 'static>(
        pending: &mut Pending<T>,
        woken: &Arc<Woken>,
    ) -> Poll<Result<T, Abandoned>> {
        let waker = Waker::from(Arc::clone(woken));
        Pin::new(pending).poll(&mut Context::from_waker(&waker))
    }

    #[test]
    fn a_value_that_comes_back_from_c_wakes_who_waits() {
        let woken = Arc::new(Woken::default());
        let (promise, mut pending) = completion::<u32>();
        let raw = promise.into_raw();
        assert!(poll(&mut pending, &woken).is_pending());
        // SAFETY: made above, and taken back once.
        unsafe { Promise::<u32>::from_raw(raw) }.complete(7);
        assert!(woken.0.load(Ordering::Relaxed));
        assert_eq!(poll(&mut pending, &woken), Poll::Ready(Ok(7)));
    }

    #[test]
    fn a_promise_that_is_dropped_wakes_who_waits_and_is_an_error() {
        let woken = Arc::new(Woken::default());
        let (promise, mut pending) = completion::<u32>();
        assert!(poll(&mut pending, &woken).is_pending());
        drop(promise);
        assert!(woken.0.load(Ordering::Relaxed));
        assert_eq!(poll(&mut pending, &woken), Poll::Ready(Err(Abandoned)));
    }

    #[test]
    fn a_value_for_nobody_is_dropped() {
        let (promise, pending) = completion::<Arc<()>>();
        drop(pending);
        let value = Arc::new(());
        promise.complete(Arc::clone(&value));
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
