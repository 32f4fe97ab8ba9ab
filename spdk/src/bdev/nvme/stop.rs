//! Teardown of NVMe controllers when SPDK stops.
//!
//! ```text
//! attempts over PCIe end ─► other attempts dropped, SPDK stops ─► controllers destroyed ─► done
//!          └─ timeout: 1 s ────────┘             timeout: 1 s, connections given up ─┘
//! ```

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use spdk_sys as sys;

use super::attempts;
use crate::app_thread::Spdk;

/// How long the stop waits for attempts over PCIe to end by themselves.
const ATTEMPTS: Duration = Duration::from_secs(1);

/// How long the stop waits for controllers to shut down; a silent peer never answers.
const GOODBYE: Duration = Duration::from_secs(1);

/// Poll period.
const INTERVAL_MICROS: u64 = 10_000;

struct Farewell {
    /// Stops SPDK; taken when called.
    stop: Option<fn()>,
    /// Deadline of the current phase: first of attempts over PCIe, then of the controllers' shutdown.
    give_up: Instant,
    poller: *mut sys::spdk_poller,
}

impl Farewell {
    /// Stops SPDK unless an attempt over PCIe is in flight (until its deadline): the device would go on using its
    /// queues. Other attempts are dropped: their callers cannot be answered any more, and a controller attached after
    /// the end of SPDK's module would never be detached. Attempts are found by their pollers' name, which does not tell
    /// transports apart.
    fn stop(&mut self) {
        let over_pcie = attempts::over_pcie() > 0;
        if over_pcie && Instant::now() < self.give_up {
            return;
        }
        let Some(stop) = self.stop.take() else { return };
        if !over_pcie {
            // SAFETY: on the app thread (both callers are), the only thread that starts attempts.
            unsafe { sys::opi_nvme_end_attempts() };
        }
        self.give_up = Instant::now() + GOODBYE;
        stop();
    }

    /// Whether SPDK has been told to stop and has no controller left.
    fn is_over(&self) -> bool {
        // SAFETY: on the app thread, the only thread that creates and frees controllers.
        self.stop.is_none() && unsafe { sys::opi_nvme_count() } == 0
    }
}

/// Stops SPDK by calling `stop` as soon as no attempt over PCIe is in flight. One second later gives up the remaining
/// remote connections, so that SPDK does not wait for their peers. SPDK ends no thread that has pollers: this poller
/// unregisters itself once the last controller is gone.
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
    // SAFETY: on an SPDK thread; `farewell` stays allocated until `on_look` frees it together with the poller; the name
    // is a static C string.
    let poller = unsafe {
        sys::spdk_poller_register_named(
            Some(on_look),
            farewell.cast(),
            INTERVAL_MICROS,
            c"opi_farewell".as_ptr(),
        )
    };
    if poller.is_null() {
        // SAFETY: registration failed, so SPDK holds no pointer to the box.
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
    // SAFETY: the registered pointer; only this poller accesses it.
    let now = unsafe { &mut *farewell };
    now.stop();
    if now.is_over() {
        // SAFETY: the registered pointer, freed once: the poller is unregistered here and never runs again.
        let mut farewell = unsafe { Box::from_raw(farewell) };
        // SAFETY: a poller may unregister itself while it runs (spdk/thread.h).
        unsafe { sys::spdk_poller_unregister(&mut farewell.poller) };
        return 1;
    }
    if now.stop.is_none() && now.give_up <= Instant::now() {
        // SAFETY: on the app thread.
        unsafe { sys::opi_nvme_give_up() };
    }
    0
}
