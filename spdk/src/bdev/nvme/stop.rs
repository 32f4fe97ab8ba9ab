//! The end of controllers when SPDK stops.
//!
//! ```text
//! attempts over PCIe end ─► other attempts are dropped, SPDK stops ─► controllers go ─► done
//!          └─ a second ───────────┘                       a second: given up ─┘
//! ```

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use spdk_sys as sys;

use super::attempts;
use crate::app_thread::Spdk;

/// How long attempts over PCIe may take to end, which they do by themselves.
const ATTEMPTS: Duration = Duration::from_secs(1);

/// How long controllers may take to say goodbye to their peers. One that is silent never answers.
const GOODBYE: Duration = Duration::from_secs(1);

/// Between two looks.
const INTERVAL_MICROS: u64 = 10_000;

struct Farewell {
    /// Stops SPDK, once.
    stop: Option<fn()>,
    /// When what is waited for is waited for no longer.
    give_up: Instant,
    poller: *mut sys::spdk_poller,
}

impl Farewell {
    /// Stops SPDK unless there is an attempt over PCIe, whose device would go on using its queues. Others
    /// are dropped: nobody can be answered any more, and one that succeeded after SPDK's module has
    /// ended would never be detached. They cannot be told apart.
    fn stop(&mut self) {
        let over_pcie = attempts::over_pcie() > 0;
        if over_pcie && Instant::now() < self.give_up {
            return;
        }
        let Some(stop) = self.stop.take() else { return };
        if !over_pcie {
            // SAFETY: on the app thread (both callers are), on which alone attempts are made.
            unsafe { sys::opi_nvme_end_attempts() };
        }
        self.give_up = Instant::now() + GOODBYE;
        stop();
    }

    /// Whether SPDK is told to stop, and has no controller any more.
    fn is_over(&self) -> bool {
        // SAFETY: on the app thread, which alone makes and frees controllers.
        self.stop.is_none() && unsafe { sys::opi_nvme_count() } == 0
    }
}

/// Stops SPDK by `stop`, as soon as no attempt to attach a controller is in the way. From then on has the
/// connections of remote controllers that are still there in a second be given up, so that SPDK does
/// not wait for their peers. SPDK ends no thread that has pollers: this one goes with the last controller.
pub(crate) fn stop(_: Spdk, stop: fn()) {
    let mut farewell = Farewell {
        stop: Some(stop),
        give_up: Instant::now() + ATTEMPTS,
        poller: std::ptr::null_mut(),
    };
    farewell.stop();
    if farewell.is_over() {
        return;
    }
    let farewell = Box::into_raw(Box::new(farewell));
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
        let mut farewell = unsafe { Box::from_raw(farewell) };
        if let Some(stop) = farewell.stop.take() {
            stop();
        }
        return;
    }
    // SAFETY: the poller cannot run before this thread returns to its reactor.
    unsafe { (*farewell).poller = poller };
}

unsafe extern "C" fn on_look(argument: *mut c_void) -> c_int {
    let farewell: *mut Farewell = argument.cast();
    // SAFETY: what was registered; nobody else has it.
    let now = unsafe { &mut *farewell };
    now.stop();
    if now.is_over() {
        // SAFETY: what was registered, freed once: the poller ends here, and is our own.
        let mut farewell = unsafe { Box::from_raw(farewell) };
        // SAFETY: unregistering from within is allowed (spdk/thread.h).
        unsafe { sys::spdk_poller_unregister(&mut farewell.poller) };
        return 1;
    }
    if now.stop.is_none() && now.give_up <= Instant::now() {
        // SAFETY: on the app thread.
        unsafe { sys::opi_nvme_give_up() };
    }
    0
}
