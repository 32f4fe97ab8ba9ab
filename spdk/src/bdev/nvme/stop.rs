//! The end of controllers when SPDK stops.

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use spdk_sys as sys;

use super::attempts;
use crate::runtime::Spdk;

/// How long controllers may take to say goodbye to their peers. One that is silent never answers.
const GOODBYE: Duration = Duration::from_secs(1);

/// Between two looks at whether all have gone.
const INTERVAL_MICROS: u64 = 10_000;

struct Farewell {
    give_up: Instant,
    poller: *mut sys::spdk_poller,
}

/// Ends the attempts to attach a controller: nobody can be answered any more, and one that succeeded
/// after SPDK's module has ended would never be detached. Then has the connections of remote controllers
/// that are still there in a second be given up, so that SPDK, which is about to stop, does not wait for
/// their peers. SPDK ends no thread that has pollers: this one goes with the last controller.
pub(crate) fn give_up_late(_: Spdk) {
    if all_ended() {
        return;
    }
    let farewell = Box::into_raw(Box::new(Farewell {
        give_up: Instant::now() + GOODBYE,
        poller: std::ptr::null_mut(),
    }));
    // SAFETY: on an SPDK thread; `farewell` stays until `on_look` frees it together with the
    // poller; the name is a C string literal.
    let poller = unsafe {
        sys::spdk_poller_register_named(
            Some(on_look),
            farewell.cast(),
            INTERVAL_MICROS,
            c"opi_farewell".as_ptr(),
        )
    };
    if poller.is_null() {
        // SAFETY: SPDK did not take it.
        drop(unsafe { Box::from_raw(farewell) });
        return;
    }
    // SAFETY: the poller cannot run before this thread returns to its reactor.
    unsafe { (*farewell).poller = poller };
}

/// Ends attempts, and tells whether no controller is left. While there is an attempt over PCIe, which ends
/// soon by itself, all go on: they cannot be told apart, and its device would go on using its queues.
fn all_ended() -> bool {
    if attempts::over_pcie() > 0 {
        return false;
    }
    // SAFETY: on the app thread (both callers are), on which alone attempts and controllers are made.
    unsafe {
        sys::opi_nvme_end_attempts();
        sys::opi_nvme_count() == 0
    }
}

unsafe extern "C" fn on_look(argument: *mut c_void) -> c_int {
    let farewell: *mut Farewell = argument.cast();
    if all_ended() {
        // SAFETY: what was registered, freed once: the poller ends here, and is our own.
        let mut farewell = unsafe { Box::from_raw(farewell) };
        // SAFETY: unregistering from within is allowed (spdk/thread.h).
        unsafe { sys::spdk_poller_unregister(&mut farewell.poller) };
        return 1;
    }
    // SAFETY: what was registered; nobody else has it.
    if unsafe { (*farewell).give_up } <= Instant::now() {
        // SAFETY: on the app thread.
        unsafe { sys::opi_nvme_give_up() };
    }
    0
}
