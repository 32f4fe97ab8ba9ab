//! Workers: one SPDK thread per reactor, shared by all devices. It polls their rings, and runs jobs from control
//! threads.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spdk_sys as sys;

use super::signal::{self, Signaller};
use crate::app_thread::Spdk;
use crate::error::Error;
use crate::hooks::idle;
use crate::ring::Ring;
use spdk_control::gate::Gate;

/// A job for a worker.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Capacity of the job queue.
const CAPACITY: usize = 1024;

/// Period of polling for jobs, in microseconds.
const PERIOD_MICROS: u64 = 50;

/// A worker, as seen by the threads that submit jobs.
pub(super) struct Worker {
    inbox: Gate<Arc<Ring<Job>>>,
    /// Number of devices assigned.
    devices: AtomicUsize,
    /// The core of its thread.
    core: u32,
}

thread_local! {
    /// All workers, created with the first device. App thread.
    static WORKERS: RefCell<Vec<Arc<Worker>>> = const { RefCell::new(Vec::new()) };
}

/// A device's assignment to a worker; released when dropped.
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

/// Assigns a device to the worker with the fewest devices.
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

/// Ends all workers, which must have no devices. They accept no further jobs.
pub(super) fn stop(_: Spdk) {
    for worker in WORKERS.take() {
        // Nobody else submits jobs any more. If the queue is full, SPDK ends the thread during its own teardown.
        let _ = worker.run(Box::new(|| ENDING.set(true)));
        worker.inbox.close();
    }
}

fn cores() -> impl Iterator<Item = u32> {
    // SAFETY: reads the core list of SPDK's environment, which is initialized.
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
    // SAFETY: runs on the app thread; SPDK copies the name.
    let thread = unsafe { sys::opi_thread_create(c"opi_vhost".as_ptr(), core) };
    if thread.is_null() {
        return Err(Error::new(OPERATION, libc::ENOMEM));
    }
    let first = Box::new(Begin {
        ring: ring.clone(),
        signaller: Signaller::new(),
    });
    let argument = Box::into_raw(first).cast();
    // SAFETY: sent from an SPDK thread to the thread just created; `begin` takes ownership of the box.
    unsafe { sys::spdk_thread_send_msg(thread, Some(begin), argument) };
    Ok(Arc::new(Worker {
        inbox: Gate::new(ring),
        devices: AtomicUsize::new(0),
        core,
    }))
}

impl Worker {
    /// Submits a job. Returns it if the queue is full (backpressure), or the worker has ended.
    pub(super) fn run(&self, job: Job) -> Result<(), Job> {
        match self.inbox.enter() {
            Some(ring) => ring.push(Box::new(job)).map_err(|job| *job)?,
            None => return Err(job),
        }
        idle::wake(self.core);
        Ok(())
    }
}

thread_local! {
    /// Set by a job on its worker's thread to end that worker.
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

/// The argument of a worker thread's first message.
struct Begin {
    ring: Arc<Ring<Job>>,
    signaller: Option<Signaller>,
}

/// The state of the worker's poller.
struct Inbox {
    ring: Arc<Ring<Job>>,
    poller: *mut sys::spdk_poller,
}

/// The first message of a worker's thread: registers its poller.
unsafe extern "C" fn begin(argument: *mut c_void) {
    // SAFETY: `argument` is the box that `start` passed, taken back once.
    let begin = unsafe { Box::from_raw(argument.cast::<Begin>()) };
    let Begin { ring, signaller } = *begin;
    signal::adopt(signaller);
    let inbox = Box::into_raw(Box::new(Inbox {
        ring,
        poller: std::ptr::null_mut(),
    }));
    // SAFETY: runs on an SPDK thread; only `poll` frees `inbox`, when it unregisters the poller; the name is a C
    // literal.
    unsafe {
        (*inbox).poller = sys::spdk_poller_register_named(
            Some(poll),
            inbox.cast(),
            PERIOD_MICROS,
            c"opi_vhost_jobs".as_ptr(),
        );
    }
}

/// Runs one job per turn, so that I/O waits for one job at a time.
unsafe extern "C" fn poll(argument: *mut c_void) -> c_int {
    let inbox: *mut Inbox = argument.cast();
    // SAFETY: `argument` is the inbox that `begin` registered; this poller is the ring's only consumer.
    let Some(job) = (unsafe { (*inbox).ring.pop() }) else {
        return 0;
    };
    job();
    if ENDING.take() {
        // SAFETY: `inbox` comes from a box in `begin`, and is not used after this; unregistering a poller from
        // within its own function is allowed (spdk/thread.h); the thread belongs to this worker alone.
        unsafe {
            let mut inbox = Box::from_raw(inbox);
            sys::spdk_poller_unregister(&mut inbox.poller);
            drop(inbox);
            sys::spdk_thread_exit(sys::spdk_get_thread());
        }
    }
    1
}
