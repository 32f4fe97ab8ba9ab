//! The app thread's end of the mailbox: a poller that looks for calls now and then, and one that takes a turn
//! each time that the reactor does, while there are some.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use spdk_control::executor;
use spdk_sys as sys;

use super::{Message, Rings, Shared};
use crate::bdev::nvme;
use crate::error::Error;
use crate::log;
use crate::runtime::Spdk;

/// How often the reactor looks for calls while there are none, microseconds: I/O pays for each look,
/// a call waits for half of that.
const LOOK_MICROS: u64 = 10;

/// Turns without anything to do after which the reactor goes back to looking so seldom.
const QUIET_TURNS: u32 = 1024;

/// The app thread's end of the mailbox, owned by its pollers.
struct Consumer {
    shared: Arc<Shared>,
    rings: Arc<Rings>,
    spdk: Spdk,
    /// Looks for calls now and then.
    look: Cell<*mut sys::spdk_poller>,
    /// Takes a turn each time that the reactor does, while there are calls. Null at other times.
    work: Cell<*mut sys::spdk_poller>,
    /// Turns in a row that found nothing to do.
    quiet: Cell<u32>,
}

/// Opens the mailbox on this thread, which is SPDK's app thread. `may_watch`: callers
/// run on other cores than reactors, and may look for their answers before they sleep.
pub(crate) fn open(spdk: Spdk, capacity: usize, may_watch: bool) -> Result<Arc<Shared>, Error> {
    let shared = Arc::new(Shared::new(capacity, may_watch)?);
    let Some(rings) = shared.gate.enter().map(|rings| Arc::clone(&rings)) else {
        return Err(Error::new("open mailbox", libc::ESHUTDOWN));
    };
    let consumer = Box::into_raw(Box::new(Consumer {
        shared: shared.clone(),
        rings,
        spdk,
        look: Cell::new(std::ptr::null_mut()),
        work: Cell::new(std::ptr::null_mut()),
        quiet: Cell::new(0),
    }));
    // SAFETY: on an SPDK thread; `consumer` stays until `end` frees it; the name
    // is a C string literal.
    let poller = unsafe {
        sys::spdk_poller_register_named(
            Some(look),
            consumer.cast(),
            LOOK_MICROS,
            c"opi_mailbox".as_ptr(),
        )
    };
    if poller.is_null() {
        // SAFETY: SPDK did not take it.
        drop(unsafe { Box::from_raw(consumer) });
        return Err(Error::new("register mailbox poller", libc::ENOMEM));
    }
    // SAFETY: the poller cannot run before this thread returns to its reactor.
    unsafe { (*consumer).look.set(poller) };
    executor::start(shared.clone(), || {
        log::note(
            sys::spdk_log_level_SPDK_LOG_ERROR,
            "a task on SPDK's app thread panicked and was dropped".to_owned(),
        );
    });
    Ok(shared)
}

/// What was registered as `look`: takes a turn, and has more follow if that found something.
unsafe extern "C" fn look(argument: *mut c_void) -> c_int {
    // SAFETY: what `open` registered; freed only by `end`, which ends this poller.
    let consumer = unsafe { &*argument.cast::<Consumer>() };
    if !consumer.work.get().is_null() {
        return 0;
    }
    match consumer.turn() {
        Turn::Idle => 0,
        Turn::Busy => {
            consumer.quiet.set(0);
            // SAFETY: on an SPDK thread; `end` frees `consumer` after it has ended the poller;
            // the name is a C string literal. Without memory for it the next look goes on.
            let poller = unsafe {
                sys::spdk_poller_register_named(Some(work), argument, 0, c"opi_calls".as_ptr())
            };
            consumer.work.set(poller);
            1
        }
        Turn::Stop => {
            // SAFETY: registered by `open` with a Box, and ended once: its pollers
            // are unregistered there.
            unsafe { end(argument.cast()) };
            1
        }
    }
}

/// What was registered as `work`: takes a turn, until there has been nothing to do for a while.
unsafe extern "C" fn work(argument: *mut c_void) -> c_int {
    // SAFETY: as in `look`, which registered it.
    let consumer = unsafe { &*argument.cast::<Consumer>() };
    match consumer.turn() {
        Turn::Busy => {
            consumer.quiet.set(0);
            1
        }
        Turn::Idle => {
            let quiet = consumer.quiet.get().saturating_add(1);
            consumer.quiet.set(quiet);
            if quiet >= QUIET_TURNS && executor::is_empty() {
                consumer.end_work();
            }
            0
        }
        Turn::Stop => {
            // SAFETY: as in `look`.
            unsafe { end(argument.cast()) };
            1
        }
    }
}

/// What a turn found.
enum Turn {
    Idle,
    Busy,
    Stop,
}

impl Consumer {
    /// One turn of the reactor: at most one message and one woken task, so that I/O
    /// waits for one control step at a time.
    fn turn(&self) -> Turn {
        // SAFETY: the pollers of this consumer, which run one at a time, are the only
        // consumers of requests.
        let message = unsafe { self.rings.requests.pop() };
        let mut found = Turn::Idle;
        if let Some(message) = message {
            found = Turn::Busy;
            match *message {
                Message::Call(begin) => self.timed(|| {
                    begin(self.spdk);
                    true
                }),
                Message::Wake(task) => executor::wake(task),
                Message::Stop => return Turn::Stop,
            }
        }
        if self.shared.missed.take() {
            executor::wake_all();
        }
        if executor::has_woken() {
            found = Turn::Busy;
            self.timed(executor::run_one);
        }
        found
    }

    fn end_work(&self) {
        let mut poller = self.work.replace(std::ptr::null_mut());
        // SAFETY: our own poller, on its thread, or null; unregistering from within is
        // allowed (spdk/thread.h).
        unsafe { sys::spdk_poller_unregister(&mut poller) };
    }

    fn timed(&self, step: impl FnOnce() -> bool) {
        // SAFETY: SPDK's environment is up while its pollers run.
        let begun = unsafe { sys::spdk_get_ticks() };
        step();
        // SAFETY: as above.
        let ended = unsafe { sys::spdk_get_ticks() };
        self.shared.record(ended.saturating_sub(begun));
    }
}

/// Closes the app thread's end and stops SPDK.
///
/// # Safety
/// `consumer` is the registered pollers' own, and not used afterwards.
unsafe fn end(consumer: *mut Consumer) {
    // SAFETY: the caller's contract.
    let consumer = unsafe { Box::from_raw(consumer) };
    consumer.end_work();
    let mut poller = consumer.look.get();
    // SAFETY: our own poller, on its thread; unregistering from within is allowed
    // (spdk/thread.h).
    unsafe { sys::spdk_poller_unregister(&mut poller) };
    executor::stop();
    let spdk = consumer.spdk;
    drop(consumer);
    // SAFETY: `nvme::stop` calls it on the app thread, with the reactors running.
    nvme::stop(spdk, || unsafe { sys::spdk_app_stop(0) });
}
