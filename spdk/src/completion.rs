//! SPDK operations that report through a callback, as futures.

use std::ffi::{c_int, c_void};

pub(crate) use spdk_control::completion::{Pending, Promise, completion};

use spdk_control::completion::Abandoned;

use crate::error::Error;

impl From<Abandoned> for Error {
    fn from(_: Abandoned) -> Self {
        Self::new("wait for SPDK", libc::ECANCELED)
            .with_detail("what was waited for was cut off by a fault of the program")
    }
}

/// Starts a C operation that reports through a callback, and awaits its result.
///
/// `start` is given the callback argument. If it returns non-zero, the operation has not begun, no callback follows,
/// and that errno is the result.
pub(crate) async fn call<T: 'static>(
    operation: &'static str,
    start: impl FnOnce(*mut c_void) -> c_int,
) -> Result<T, Error> {
    let (promise, pending) = completion::<T>();
    let raw = promise.into_raw();
    let rc = start(raw);
    if rc != 0 {
        // SAFETY: `raw` comes from `into_raw` above. C refused the call, so it does not use `raw` any more, and
        // this is the only place that takes it back.
        drop(unsafe { Promise::<T>::from_raw(raw) });
        return Err(Error::new(operation, rc));
    }
    Ok(pending.await?)
}

/// The C callback of operations that report only a status.
///
/// # Safety
/// C calls it once, on the app thread, with the argument that [`call::<c_int>`] passed to `start`.
pub(crate) unsafe extern "C" fn on_status(argument: *mut c_void, status: c_int) {
    // SAFETY: by the caller's contract `argument` comes from `into_raw` of a `Promise<c_int>` on this thread, and
    // has not been taken back.
    unsafe { Promise::<c_int>::from_raw(argument) }.complete(status);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
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
        // SAFETY: the argument that `call` passed to `start`, taken back here for the first time.
        unsafe { on_status(kept.get(), 0) };
    }

    #[test]
    fn a_callback_before_the_first_poll_is_not_lost() {
        let future = std::pin::pin!(call::<c_int>("at once", |raw| {
            // SAFETY: the argument that `call` passed to `start`, taken back once.
            unsafe { on_status(raw, 7) };
            0
        }));
        assert!(matches!(poll(future), Poll::Ready(Ok(7))));
    }
}
