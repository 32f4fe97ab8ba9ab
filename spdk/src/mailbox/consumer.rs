//! The app thread's side of the mailbox: a timed poller that checks for calls, and an untimed one that runs at each
//! turn of the reactor while there are some.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use spdk_control::executor;
use spdk_sys as sys;

use super::{Message, Rings, Shared};
use crate::app_thread::Spdk;
use crate::bdev::nvme;
use crate::error::Error;
use crate::hooks::polls;
use crate::log;

/// Idle poll period, in microseconds: trades reactor overhead for latency (mean: half).
const LOOK_MICROS: u64 = 10;

/// Turns without work after which the untimed poller is unregistered.
const QUIET_TURNS: u32 = 1024;

/// The app thread's side of the mailbox, owned by its pollers.
struct Consumer {
    shared: Arc<Shared>,
    rings: Arc<Rings>,
    spdk: Spdk,
    /// The timed poller.
    look: Cell<*mut sys::spdk_poller>,
    /// The untimed poller. Null while there are no calls.
    work: Cell<*mut sys::spdk_poller>,
    /// Consecutive turns without work.
    quiet: Cell<u32>,
}

/// Opens the mailbox on the calling thread, SPDK's app thread. `may_watch`: callers run on cores without a reactor,
/// and may poll for replies before they sleep.
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
    // SAFETY: runs on an SPDK thread; `consumer` lives until `end` frees it, which unregisters the poller first;
    // the name is a C literal.
    let poller = unsafe {
        sys::spdk_poller_register_named(
            Some(look),
            consumer.cast(),
            LOOK_MICROS,
            c"opi_mailbox".as_ptr(),
        )
    };
    if poller.is_null() {
        // SAFETY: `consumer` comes from Box::into_raw, and SPDK did not take it.
        drop(unsafe { Box::from_raw(consumer) });
        return Err(Error::new("register mailbox poller", libc::ENOMEM));
    }
    // SAFETY: `consumer` is alive, and the poller cannot run before this thread returns to its reactor, so nobody
    // else accesses it.
    unsafe { (*consumer).look.set(poller) };
    executor::start(shared.clone(), || {
        log::note(
            sys::spdk_log_level_SPDK_LOG_ERROR,
            "a task on SPDK's app thread panicked and was dropped".to_owned(),
        );
    });
    Ok(shared)
}

/// The timed poller: takes a turn, and registers the untimed poller if there was work.
unsafe extern "C" fn look(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the consumer that `open` registered; only `end` frees it, and unregisters this poller
    // first.
    let consumer = unsafe { &*argument.cast::<Consumer>() };
    if !consumer.work.get().is_null() {
        return 0;
    }
    match consumer.turn() {
        Turn::Idle => 0,
        Turn::Busy => {
            consumer.quiet.set(0);
            // SAFETY: runs on an SPDK thread; `end` frees `consumer` only after it has unregistered the poller; the
            // name is a C literal. If SPDK is out of memory, the timed poller carries on.
            let poller = unsafe {
                sys::spdk_poller_register_named(Some(work), argument, 0, c"opi_calls".as_ptr())
            };
            consumer.work.set(poller);
            1
        }
        Turn::Stop => {
            // SAFETY: `argument` is the box that `open` registered. `end` runs once, since it unregisters both
            // pollers.
            unsafe { end(argument.cast()) };
            1
        }
    }
}

/// The untimed poller: takes a turn, and unregisters itself after a while without work.
unsafe extern "C" fn work(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the consumer passed on by `look`; only `end` frees it, and unregisters this poller
    // first.
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

/// The outcome of a turn.
enum Turn {
    Idle,
    Busy,
    Stop,
}

impl Consumer {
    /// Takes one turn: at most one message and one woken task, so that I/O waits for one configuration step at a
    /// time.
    fn turn(&self) -> Turn {
        // SAFETY: pop requires a single consumer: only the pollers of this consumer pop requests, both on this
        // thread.
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
        // SAFETY: null, or this consumer's own poller on its thread; unregistering a poller from within its own
        // function is allowed (spdk/thread.h).
        unsafe { sys::spdk_poller_unregister(&mut poller) };
    }

    fn timed(&self, step: impl FnOnce() -> bool) {
        let begun = polls::clock();
        step();
        self.shared.record(polls::clock().saturating_sub(begun));
    }
}

/// Closes the app thread's side and stops SPDK.
///
/// # Safety
/// `consumer` is the box owned by the registered pollers, and is not used afterwards.
unsafe fn end(consumer: *mut Consumer) {
    // SAFETY: by the caller's contract this box is taken back once.
    let consumer = unsafe { Box::from_raw(consumer) };
    consumer.end_work();
    let mut poller = consumer.look.get();
    // SAFETY: this consumer's own poller, on its thread; unregistering a poller from within its own function is
    // allowed (spdk/thread.h).
    unsafe { sys::spdk_poller_unregister(&mut poller) };
    executor::stop();
    let spdk = consumer.spdk;
    drop(consumer);
    // SAFETY: `nvme::stop` calls this on the app thread, with the reactors running.
    nvme::stop(spdk, || unsafe { sys::spdk_app_stop(0) });
}
