//! Timers on the app thread. Each is an SPDK poller that is unregistered when the wait ends: SPDK does not end a
//! thread that has pollers.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use spdk_sys as sys;

use crate::app_thread::Spdk;

/// What the poller accesses: on the heap, kept alive by [`Sleep`] while the poller is registered.
struct Alarm {
    /// Null once unregistered.
    poller: Cell<*mut sys::spdk_poller>,
    waker: RefCell<Option<Waker>>,
}

/// Resolves after its delay. Dropping it earlier unregisters the poller.
pub(crate) struct Sleep(Rc<Alarm>);

/// Waits for `delay` (microsecond resolution) without blocking the reactor. If SPDK is out of memory for the poller,
/// it resolves at once.
pub(crate) fn sleep(_: Spdk, delay: Duration) -> Sleep {
    let alarm = Rc::new(Alarm {
        poller: Cell::new(std::ptr::null_mut()),
        waker: RefCell::new(None),
    });
    let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX).max(1);
    let argument = Rc::as_ptr(&alarm).cast_mut().cast();
    // SAFETY: runs on an SPDK thread (the caller holds a `Spdk`). `alarm` lives until `Sleep` is dropped, which
    // unregisters the poller first; the name is a C literal.
    let poller = unsafe {
        sys::spdk_poller_register_named(Some(fire), argument, micros, c"opi_sleep".as_ptr())
    };
    alarm.poller.set(poller);
    Sleep(alarm)
}

impl Alarm {
    fn end(&self) {
        let mut poller = self.poller.replace(std::ptr::null_mut());
        if !poller.is_null() {
            // SAFETY: this poller is registered and was not unregistered before (its pointer was taken out above),
            // and runs on this thread: an `Rc` cannot move to another.
            unsafe { sys::spdk_poller_unregister(&mut poller) };
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0.poller.get().is_null() {
            return Poll::Ready(());
        }
        *self.0.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.0.end();
    }
}

unsafe extern "C" fn fire(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the pointer that `sleep` registered; the alarm is alive while its poller is registered.
    let alarm = unsafe { &*argument.cast::<Alarm>() };
    alarm.end();
    let waker = alarm.waker.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
    1
}
