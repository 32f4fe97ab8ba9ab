//! Workers: one SPDK thread on each reactor's core, which all devices share. It polls their rings, and
//! takes jobs from the threads that talk with clients.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spdk_sys as sys;

use super::signal::{self, Signaller};
use crate::error::Error;
use crate::ring::Ring;
use crate::runtime::Spdk;
use spdk_control::gate::Gate;

/// What a worker is to do.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Jobs that may wait.
const CAPACITY: usize = 1024;

/// How often a worker looks for jobs, microseconds.
const PERIOD_MICROS: u64 = 50;

/// A worker, for the threads that give it jobs.
pub(super) struct Worker {
    inbox: Gate<Arc<Ring<Job>>>,
    /// Devices that it serves.
    devices: AtomicUsize,
}

thread_local! {
    /// Of the app thread: all workers, made when the first device is.
    static WORKERS: RefCell<Vec<Arc<Worker>>> = const { RefCell::new(Vec::new()) };
}

/// A device's place on a worker, given back when it is dropped.
pub(super) struct Booking(Arc<Worker>);

impl Booking {
    pub(super) fn worker(&self) -> &Arc<Worker> {
        &self.0
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.0.devices.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place on the worker that has the fewest devices.
pub(super) fn book(spdk: Spdk) -> Result<Booking, Error> {
    let worker = WORKERS.with_borrow_mut(|workers| {
        if workers.is_empty() {
            *workers = cores()
                .map(|core| start(spdk, core))
                .collect::<Result<_, _>>()?;
        }
        let least = workers
            .iter()
            .min_by_key(|worker| worker.devices.load(Ordering::Relaxed));
        least
            .cloned()
            .ok_or_else(|| Error::new("start vhost worker", libc::ENODEV))
    })?;
    worker.devices.fetch_add(1, Ordering::Relaxed);
    Ok(Booking(worker))
}

/// Ends all workers: no device is left on them. They take no jobs any more.
pub(super) fn stop(_: Spdk) {
    for worker in WORKERS.take() {
        // Nobody else has work for it; where the ring is full SPDK ends the thread itself.
        let _ = worker.run(Box::new(|| ENDING.set(true)));
        worker.inbox.close();
    }
}

fn cores() -> impl Iterator<Item = u32> {
    // SAFETY: reads the cores that SPDK's environment was started with.
    let first = unsafe { sys::spdk_env_get_first_core() };
    std::iter::successors((first != u32::MAX).then_some(first), |core| {
        // SAFETY: as above.
        let next = unsafe { sys::spdk_env_get_next_core(*core) };
        (next != u32::MAX).then_some(next)
    })
}

fn start(_: Spdk, core: u32) -> Result<Arc<Worker>, Error> {
    const OPERATION: &str = "start vhost worker";
    let ring = Arc::new(Ring::many_producers(CAPACITY)?);
    // SAFETY: on the app thread; the name is copied.
    let thread = unsafe { sys::opi_thread_create(c"opi_vhost".as_ptr(), core) };
    if thread.is_null() {
        return Err(Error::new(OPERATION, libc::ENOMEM));
    }
    let first = Box::new(Begin {
        ring: ring.clone(),
        signaller: Signaller::new(),
    });
    let argument = Box::into_raw(first).cast();
    // SAFETY: from an SPDK thread to one just made; `begin` takes the box.
    unsafe { sys::spdk_thread_send_msg(thread, Some(begin), argument) };
    Ok(Arc::new(Worker {
        inbox: Gate::new(ring),
        devices: AtomicUsize::new(0),
    }))
}

impl Worker {
    /// Gives it a job; gives it back if too many wait, or it has ended.
    pub(super) fn run(&self, job: Job) -> Result<(), Job> {
        match self.inbox.enter() {
            Some(ring) => ring.push(Box::new(job)).map_err(|job| *job),
            None => Err(job),
        }
    }
}

thread_local! {
    /// On a reactor's thread, while it runs a worker's job: the worker is to end.
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

/// What a worker's thread begins with.
struct Begin {
    ring: Arc<Ring<Job>>,
    signaller: Option<Signaller>,
}

/// What the worker's poller has.
struct Inbox {
    ring: Arc<Ring<Job>>,
    poller: *mut sys::spdk_poller,
}

/// The first message of a worker's thread: registers its poller.
unsafe extern "C" fn begin(argument: *mut c_void) {
    // SAFETY: what `start` gave away.
    let begin = unsafe { Box::from_raw(argument.cast::<Begin>()) };
    let Begin { ring, signaller } = *begin;
    signal::adopt(signaller);
    let inbox = Box::into_raw(Box::new(Inbox {
        ring,
        poller: std::ptr::null_mut(),
    }));
    // SAFETY: on an SPDK thread; `inbox` is freed by `poll` alone, when it ends the poller; the name is a C
    // string literal.
    unsafe {
        (*inbox).poller = sys::spdk_poller_register_named(
            Some(poll),
            inbox.cast(),
            PERIOD_MICROS,
            c"opi_vhost_jobs".as_ptr(),
        );
    }
}

/// Takes one job a turn, so that I/O waits for one at a time.
unsafe extern "C" fn poll(argument: *mut c_void) -> c_int {
    let inbox: *mut Inbox = argument.cast();
    // SAFETY: what `begin` registered; this poller is the ring's only consumer.
    let Some(job) = (unsafe { (*inbox).ring.pop() }) else {
        return 0;
    };
    job();
    if ENDING.take() {
        // SAFETY: made by `begin` from a box, and not used after this; unregistering from within is
        // allowed (spdk/thread.h); the thread is this worker's own and has nothing else.
        unsafe {
            let mut inbox = Box::from_raw(inbox);
            sys::spdk_poller_unregister(&mut inbox.poller);
            drop(inbox);
            sys::spdk_thread_exit(sys::spdk_get_thread());
        }
    }
    1
}
