//! Waiting on the app thread, by a one-shot SPDK poller.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use spdk_sys as sys;

use crate::completion::{Pending, Promise, completion};
use crate::runtime::Spdk;

/// What the poller needs to end itself: C holds it from registration to firing.
struct Alarm {
    poller: std::cell::Cell<*mut sys::spdk_poller>,
    promise: std::cell::Cell<Option<Promise<()>>>,
}

/// Waits for `delay` (microsecond resolution) without holding the reactor.
pub(crate) async fn sleep(_: Spdk, delay: Duration) {
    if let Some(pending) = arm(delay) {
        pending.await;
    }
}

/// `None` when SPDK has no memory for a poller; waiting is then given up.
fn arm(delay: Duration) -> Option<Pending<()>> {
    let (promise, pending) = completion();
    let alarm = Box::into_raw(Box::new(Alarm {
        poller: std::cell::Cell::new(std::ptr::null_mut()),
        promise: std::cell::Cell::new(Some(promise)),
    }));
    let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX).max(1);
    // SAFETY: on an SPDK thread (callers hold a `Spdk`); `alarm` stays allocated
    // until `fire` frees it; the name is a C string literal.
    let poller = unsafe {
        sys::spdk_poller_register_named(Some(fire), alarm.cast(), micros, c"opi_sleep".as_ptr())
    };
    if poller.is_null() {
        // SAFETY: SPDK did not take it, so it is still ours alone.
        drop(unsafe { Box::from_raw(alarm) });
        return None;
    }
    // SAFETY: the poller cannot fire before this thread returns to its reactor.
    unsafe { (*alarm).poller.set(poller) };
    Some(pending)
}

unsafe extern "C" fn fire(argument: *mut c_void) -> c_int {
    // SAFETY: SPDK calls with what `arm` registered, and once: the poller is
    // unregistered below.
    let alarm = unsafe { Box::from_raw(argument.cast::<Alarm>()) };
    let mut poller = alarm.poller.get();
    // SAFETY: our own poller, on the thread that registered it.
    unsafe { sys::spdk_poller_unregister(&mut poller) };
    if let Some(promise) = alarm.promise.take() {
        promise.complete(());
    }
    1
}
