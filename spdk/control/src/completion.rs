//! The one bridge from a C callback to a future.
//!
//! ```text
//! completion() ─► Promise ── into_raw ─► C holds it ── callback: from_raw, complete ─┐
//!            └──► Pending ◄──────────────────── value, wake ─────────────────────────┘
//! ```
//!
//! Lifetime: C sees the heap cell alone, never part of a future. If the future is dropped while C still holds the
//! cell, the callback frees the cell. If the promise is dropped without a value (its task panicked), the wait ends
//! with an error. Both halves stay on SPDK's app thread: `Rc` enforces that of Rust's code at compile time, and a build
//! with debug assertions checks it where C gives a promise back.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Slot<T> {
    value: Cell<Option<T>>,
    /// The promise is gone: no value will follow.
    ended: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    #[cfg(debug_assertions)]
    thread: std::thread::ThreadId,
}

/// The sending half, which C holds as its callback argument.
pub struct Promise<T>(Rc<Slot<T>>);

/// The receiving half.
pub struct Pending<T>(Rc<Slot<T>>);

/// The error of a wait whose promise was dropped without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned;

/// Creates the two halves of a value that a C callback delivers.
pub fn completion<T: 'static>() -> (Promise<T>, Pending<T>) {
    let slot = Rc::new(Slot {
        value: Cell::new(None),
        ended: Cell::new(false),
        waker: RefCell::new(None),
        #[cfg(debug_assertions)]
        thread: std::thread::current().id(),
    });
    (Promise(slot.clone()), Pending(slot))
}

impl<T> Promise<T> {
    /// Turns the promise into the callback argument for C, which owns it from now on. If C refuses the call and will
    /// not call back, the caller takes ownership back with [`Promise::from_raw`].
    #[must_use]
    pub fn into_raw(self) -> *mut c_void {
        let raw = Rc::as_ptr(&self.0);
        // The reference count of this half moves into the raw pointer.
        std::mem::forget(self);
        raw.cast_mut().cast()
    }

    /// Takes ownership of the promise back from C.
    ///
    /// # Safety
    /// `raw` was returned by [`Promise::into_raw`] for the same `T` on this thread, and has not been taken back
    /// before.
    pub unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: by the caller's contract `raw` is the `Rc`'s own pointer of the same `T`, with the one reference
        // count that `into_raw` left in it.
        let slot: Rc<Slot<T>> = unsafe { Rc::from_raw(raw.cast_const().cast()) };
        #[cfg(debug_assertions)]
        assert_eq!(
            slot.thread,
            std::thread::current().id(),
            "C called back on another thread"
        );
        Self(slot)
    }

    /// Delivers the value. That the receiver has been dropped is not an error.
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
        // SAFETY: `raw` comes from `into_raw` of a `Promise<u32>` above, on this thread, and is taken back only
        // here.
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
