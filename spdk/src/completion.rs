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
use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::error::Error;

struct Slot<T> {
    value: Cell<Option<T>>,
    /// No value will come any more.
    ended: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The sending half, which C holds as its callback argument.
pub(crate) struct Promise<T>(Rc<Slot<T>>);

/// The receiving half.
pub(crate) struct Pending<T>(Rc<Slot<T>>);

/// Nobody will bring the value any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abandoned;

impl From<Abandoned> for Error {
    fn from(_: Abandoned) -> Self {
        Self::new("wait for SPDK", libc::ECANCELED)
            .with_detail("what was waited for was cut off by a fault of the program")
    }
}

/// A value that a C callback will bring.
pub(crate) fn completion<T: 'static>() -> (Promise<T>, Pending<T>) {
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
    pub(crate) fn into_raw(self) -> *mut c_void {
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
    pub(crate) unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: the caller's contract is that of Rc::from_raw.
        Self(unsafe { Rc::from_raw(raw.cast_const().cast()) })
    }

    /// Gives the value to whoever waits; a receiver that has gone is normal.
    pub(crate) fn complete(self, value: T) {
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

/// Starts a C operation that reports through a callback, and awaits the report.
///
/// `start` gets the callback argument. If it returns non-zero the operation has
/// not begun, no callback will come, and that errno is the result.
pub(crate) async fn call<T: 'static>(
    operation: &'static str,
    start: impl FnOnce(*mut c_void) -> c_int,
) -> Result<T, Error> {
    let (promise, pending) = completion::<T>();
    let raw = promise.into_raw();
    let rc = start(raw);
    if rc != 0 {
        // SAFETY: `raw` was made above, and C, having refused, forgot it.
        drop(unsafe { Promise::<T>::from_raw(raw) });
        return Err(Error::new(operation, rc));
    }
    Ok(pending.await?)
}

/// The C callback of operations that report a bare status.
///
/// # Safety
/// C calls it with the argument that [`call::<c_int>`] handed out, once, on the
/// app thread.
pub(crate) unsafe extern "C" fn on_status(argument: *mut c_void, status: c_int) {
    // SAFETY: the caller's contract.
    unsafe { Promise::<c_int>::from_raw(argument) }.complete(status);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;

    struct Quiet;
    impl Wake for Quiet {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        let waker = Waker::from(std::sync::Arc::new(Quiet));
        future.poll(&mut Context::from_waker(&waker))
    }

    #[test]
    fn a_refused_operation_reclaims_its_context_and_is_an_error() {
        let future = std::pin::pin!(call::<c_int>("refuse", |_| -libc::EINVAL));
        let Poll::Ready(result) = poll(future) else {
            panic!("a refusal is immediate")
        };
        assert_eq!(result, Err(Error::new("refuse", libc::EINVAL)));
    }

    #[test]
    fn a_callback_after_the_receiver_has_gone_is_harmless() {
        let kept = Cell::new(std::ptr::null_mut());
        {
            let future = std::pin::pin!(call::<c_int>("leave", |raw| {
                kept.set(raw);
                0
            }));
            assert!(poll(future).is_pending());
        }
        // SAFETY: the argument that `call` handed out, used for the first time.
        unsafe { on_status(kept.get(), 0) };
    }

    #[test]
    fn a_promise_that_is_dropped_wakes_who_waits_and_is_an_error() {
        struct Woken(std::sync::atomic::AtomicBool);
        impl Wake for Woken {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let woken = std::sync::Arc::new(Woken(false.into()));
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let (promise, pending) = completion::<c_int>();
        let mut pending = std::pin::pin!(pending);
        assert!(pending.as_mut().poll(&mut context).is_pending());
        drop(promise);
        assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
        let ended = pending.as_mut().poll(&mut context);
        assert_eq!(ended, Poll::Ready(Err(Abandoned)));
    }

    #[test]
    fn a_callback_before_the_first_poll_is_not_lost() {
        let future = std::pin::pin!(call::<c_int>("at once", |raw| {
            // SAFETY: the argument that `call` handed out, used once.
            unsafe { on_status(raw, 7) };
            0
        }));
        assert!(matches!(poll(future), Poll::Ready(Ok(7))));
    }
}
