//! SPDK operations that report through a callback, as futures.

use std::ffi::{c_int, c_void};
use std::time::Duration;

pub(crate) use spdk_control::completion::{Pending, Promise, completion};

use spdk_control::completion::Abandoned;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::deadline::within;
use crate::error::Error;

impl From<Abandoned> for Error {
    fn from(_: Abandoned) -> Self {
        Self::cut_off("wait for SPDK", libc::ECANCELED)
    }
}

/// A C callback and the type that it reports, tied together so that an operation cannot be given the argument of
/// another callback.
///
/// # Safety
/// `FUNCTION` must reclaim the argument it is called with, as a `Promise` of `Report`, exactly once.
pub(crate) unsafe trait Callback {
    /// The value that the operation reports.
    type Report: 'static;
    /// The callback's C type, as bindgen generates it.
    type Function;
    /// The callback.
    const FUNCTION: Self::Function;
}

/// Starts a C operation that reports through the callback `C`.
///
/// `start` passes the callback and its argument to C, which calls back exactly once, on the app thread unless the callback
/// is one that may be called on any ([`Status`]). If `start` returns non-zero, the operation has not begun, the callback is
/// never called, and that errno is the result.
pub(crate) fn begin<C: Callback>(
    operation: &'static str,
    start: impl FnOnce(C::Function, *mut c_void) -> c_int,
) -> Result<Pending<C::Report>, Error> {
    let (promise, pending) = completion::<C::Report>();
    let raw = promise.into_raw();
    let rc = start(C::FUNCTION, raw);
    if rc != 0 {
        // SAFETY: `raw` was made above, and C refused the call, so it holds no copy and never calls back.
        drop(unsafe { Promise::<C::Report>::from_raw(raw) });
        return Err(Error::new(operation, rc));
    }
    Ok(pending)
}

/// Runs [`begin`] and awaits the report.
pub(crate) async fn call<C: Callback>(
    operation: &'static str,
    start: impl FnOnce(C::Function, *mut c_void) -> c_int,
) -> Result<C::Report, Error> {
    Ok(begin::<C>(operation, start)?.await?)
}

/// Runs [`call`] with a timeout. ETIMEDOUT when it expires; the operation then continues in the background, so that
/// the error is unsettled.
pub(crate) async fn call_within<C: Callback>(
    spdk: Spdk,
    limit: Duration,
    operation: &'static str,
    start: impl FnOnce(C::Function, *mut c_void) -> c_int,
) -> Result<C::Report, Error> {
    let report = call::<C>(operation, start);
    within(spdk, limit, report).await.unwrap_or_else(|| {
        let seconds = limit.as_secs();
        Err(Error::unfinished(operation).with_detail(format!(
            "it has not ended within {seconds} s and goes on by itself"
        )))
    })
}

/// The callback of operations that report only a status: zero or a negative errno. It may be called on any SPDK thread:
/// `spdk_bdev_set_qos_rate_limits` calls back on the thread that counts the bdev's I/O.
pub(crate) struct Status;

// SAFETY: `on_status` reclaims the argument exactly once.
unsafe impl Callback for Status {
    type Report = c_int;
    type Function = Option<unsafe extern "C" fn(*mut c_void, c_int)>;
    const FUNCTION: Self::Function = Some(on_status);
}

/// A status on its way to the app thread.
struct Late {
    argument: *mut c_void,
    status: c_int,
}

/// Completes the promise on the app thread: at once if this runs there, else by a message.
unsafe extern "C" fn on_status(argument: *mut c_void, status: c_int) {
    // SAFETY: both may be called on any thread; they compare equal, null, while SPDK does not run, as in tests.
    let (here, app) = unsafe { (sys::spdk_get_thread(), sys::spdk_thread_get_app_thread()) };
    if here == app {
        // SAFETY: the argument of a `call::<Status>`; C calls back exactly once, and this is the app thread.
        unsafe { Promise::<c_int>::from_raw(argument) }.complete(status);
        return;
    }
    let late = Box::into_raw(Box::new(Late { argument, status }));
    // SAFETY: the app thread exits last; `on_app_thread` takes the box back, once.
    unsafe { sys::spdk_thread_send_msg(app, Some(on_app_thread), late.cast()) };
}

unsafe extern "C" fn on_app_thread(late: *mut c_void) {
    // SAFETY: the box of `on_status`, which this message alone has.
    let Late { argument, status } = *unsafe { Box::from_raw(late.cast::<Late>()) };
    // SAFETY: as in `on_status`; messages to the app thread run on it.
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
        let future = std::pin::pin!(call::<Status>("refuse", |_, _| -libc::EINVAL));
        let Poll::Ready(result) = poll(future) else {
            panic!("a refusal is immediate")
        };
        assert_eq!(result, Err(Error::new("refuse", libc::EINVAL)));
    }

    #[test]
    fn an_operation_whose_task_panicked_is_cut_off() {
        let (promise, pending) = completion::<()>();
        drop(promise);
        let Poll::Ready(Err(abandoned)) = poll(std::pin::pin!(pending)) else {
            panic!("no value follows")
        };
        assert!(Error::from(abandoned).is_cut_off);
    }

    #[test]
    fn a_callback_after_the_receiver_has_gone_is_harmless() {
        let kept = Cell::new(std::ptr::null_mut());
        {
            let future = std::pin::pin!(call::<Status>("leave", |_, raw| {
                kept.set(raw);
                0
            }));
            assert!(poll(future).is_pending());
        }
        // SAFETY: the argument that `call` passed to `start`, reclaimed here for the first and only time.
        unsafe { on_status(kept.get(), 0) };
    }

    #[test]
    fn a_callback_before_the_first_poll_is_not_lost() {
        let future = std::pin::pin!(call::<Status>("at once", |callback, raw| {
            // SAFETY: the argument that `call` passed to `start`, used exactly once.
            unsafe { callback.expect("a function")(raw, 7) };
            0
        }));
        assert!(matches!(poll(future), Poll::Ready(Ok(7))));
    }
}
