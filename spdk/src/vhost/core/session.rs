//! A client's rings on the worker, with one poller for all of them.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::Sender;
use spdk_gate::vhost_user::Fault;
use spdk_gate::vhost_user::chain::Broken;
use spdk_gate::vhost_user::ring::Places;
use spdk_gate::vhost_user::turn::Turn;
use spdk_sys as sys;

use super::call::{Bell, Call};
use super::device::{Device, Io};
use super::memory::{Memory, View};
use super::queue::{Logged, Queue};
use super::request::Request;

/// Moves a value that is not `Send` to another thread together with all access to it.
pub(super) struct Handover<T>(pub(super) T);

// SAFETY: invariant: whoever creates one gives up all access to the value, so only the receiving thread uses it.
unsafe impl<T> Send for Handover<T> {}

impl<T> Handover<T> {
    /// A method, so that a closure captures the whole struct instead of its field, which is not `Send`.
    pub(super) fn take(self) -> T {
        self.0
    }
}

/// The sender of an answer to a control thread, and the bell that wakes it.
pub(super) struct Answer<T> {
    pub(super) sender: Sender<T>,
    pub(super) bell: Arc<Bell>,
}

impl<T> Answer<T> {
    pub(super) fn send(self, value: T) {
        // The channel has room for one answer. If the receiver is gone, nobody needs it.
        let _ = self.sender.try_send(value);
        self.bell.ring();
    }
}

/// A returned ring, with the index of its next request and the driver's violation, if any.
pub(super) struct Stopped<I: Io> {
    pub(super) queue: Handover<NonNull<Queue<I>>>,
    pub(super) base: u16,
    pub(super) fault: Option<Fault>,
}

/// A ring being stopped, and the receiver of it.
type Stopping<I> = (u16, Answer<Stopped<I>>);

/// The rings of a client.
pub(crate) struct Session<I: Io> {
    io: I,
    queues: RefCell<Vec<NonNull<Queue<I>>>>,
    stopping: RefCell<Vec<Stopping<I>>>,
    /// The ring that a turn begins with (round robin).
    first: Cell<usize>,
    view: RefCell<Rc<View>>,
    outstanding: Cell<u32>,
    broken: Cell<u64>,
    poller: Cell<*mut sys::spdk_poller>,
}

/// A session's rings, for [`Io::poll`].
pub(crate) struct Queues<'a, I: Io>(&'a Session<I>);

impl<I: Io> Queues<'_, I> {
    /// Returns the outstanding requests of all rings.
    pub(crate) fn outstanding(&self) -> u32 {
        self.0.outstanding.get()
    }

    /// Takes the next request of a queue, if there is one.
    pub(crate) fn pop(&self, queue: u16) -> Option<Request<I>> {
        let found = self.0.find(queue)?;
        // SAFETY: a queue in the list is alive until it is removed from the list, on this thread.
        unsafe { found.as_ref() }.next(self.0)
    }
}

impl<I: Io> Session<I> {
    /// Begins a session in the given memory. Worker thread; ended by [`Session::end`].
    pub(super) fn begin<D: Device<Io = I>>(device: Arc<D>, memory: Arc<Memory>) -> NonNull<Self> {
        let session = Box::into_raw(Box::new(Self {
            io: device.io(),
            queues: RefCell::default(),
            stopping: RefCell::default(),
            first: Cell::new(0),
            view: RefCell::new(Rc::new(View::new(memory))),
            outstanding: Cell::new(0),
            broken: Cell::new(0),
            poller: Cell::new(std::ptr::null_mut()),
        }));
        // SAFETY: runs on an SPDK thread; only `end` frees `session`, and unregisters the poller first; the name is
        // a C literal; a pointer from a box is not null.
        unsafe {
            let poller = sys::spdk_poller_register_named(
                Some(poll::<I>),
                session.cast(),
                0,
                c"opi_vhost".as_ptr(),
            );
            (*session).poller.set(poller);
            NonNull::new_unchecked(session)
        }
    }

    /// Ends a session. All its rings must have been returned.
    ///
    /// # Safety
    /// Runs on the worker; `session` comes from [`Session::begin`], and is not used afterwards.
    pub(super) unsafe fn end(session: NonNull<Self>) {
        // SAFETY: by the caller's contract this box is taken back once.
        let session = unsafe { Box::from_raw(session.as_ptr()) };
        let mut poller = session.poller.get();
        // SAFETY: this session's own poller, on its thread, unregistered once.
        unsafe { sys::spdk_poller_unregister(&mut poller) };
    }

    #[inline]
    pub(super) fn io(&self) -> &I {
        &self.io
    }

    #[inline]
    pub(super) fn view(&self) -> std::cell::Ref<'_, Rc<View>> {
        self.view.borrow()
    }

    #[inline]
    pub(super) fn one_more(&self) {
        self.outstanding.set(self.outstanding.get() + 1);
    }

    #[inline]
    pub(super) fn one_less(&self) {
        self.outstanding.set(self.outstanding.get() - 1);
    }

    /// Counts a malformed chain.
    #[cold]
    pub(super) fn note_broken(&self, _: Broken) {
        self.broken.set(self.broken.get() + 1);
    }

    fn find(&self, index: u16) -> Option<NonNull<Queue<I>>> {
        let queues = self.queues.borrow();
        // SAFETY: every queue in the list is alive.
        let found = queues
            .iter()
            .find(|queue| unsafe { queue.as_ref() }.index() == index);
        found.copied()
    }

    fn with<R>(&self, index: u16, change: impl FnOnce(&Queue<I>) -> R) -> Option<R> {
        // SAFETY: every queue in the list is alive.
        self.find(index)
            .map(|queue| change(unsafe { queue.as_ref() }))
    }

    /// Polls a ring from now on.
    pub(super) fn add(&self, queue: NonNull<Queue<I>>) {
        // SAFETY: handed over by the control thread, which frees it only after it was returned.
        unsafe { queue.as_ref() }.join(self);
        self.queues.borrow_mut().push(queue);
    }

    /// Takes no further requests from a ring, and returns the ring once its outstanding requests have drained.
    pub(super) fn stop(&self, index: u16, answer: Answer<Stopped<I>>) {
        self.with(index, Queue::stop);
        self.stopping.borrow_mut().push((index, answer));
    }

    /// Pauses or resumes a ring.
    pub(super) fn pause(&self, index: u16, paused: bool) {
        self.with(index, |queue| queue.pause(paused));
    }

    /// Replaces the eventfd that interrupts a ring's driver. Returns the previous one.
    pub(super) fn set_call(&self, index: u16, call: Option<Call>) -> Option<Call> {
        self.with(index, |queue| queue.set_call(call)).flatten()
    }

    /// Replaces how a ring's writes are logged. Returns the previous setting.
    pub(super) fn set_logged(&self, index: u16, logged: Option<Logged>) -> Option<Logged> {
        self.with(index, |queue| queue.set_logged(logged)).flatten()
    }

    /// Moves the rings to other memory, at the given places. Requests in flight keep their memory.
    pub(super) fn remap(&self, memory: Arc<Memory>, places: &[(u16, Places)]) {
        *self.view.borrow_mut() = Rc::new(View::new(memory));
        for (index, places) in places {
            self.with(*index, |queue| queue.move_to(*places));
        }
    }

    #[inline]
    fn turn(&self) -> c_int {
        let mut turn = Turn::new();
        let has_work;
        {
            let queues = self.queues.borrow();
            let first = self.first.get().min(queues.len());
            let (before, after) = queues.split_at(first);
            let mut polled = 0;
            for queue in after.iter().chain(before) {
                if turn.is_spent() {
                    break;
                }
                // SAFETY: every queue in the list is alive.
                let queue = unsafe { queue.as_ref() };
                if self.io.is_polled(queue.index()) {
                    queue.poll(self, &mut turn);
                }
                polled += 1;
            }
            // Fairness: the next turn begins with the rings that this one did not reach.
            self.first.set(turn.next_first(first, polled, queues.len()));
            has_work = self.io.poll(&Queues(self));
            for queue in queues.iter() {
                // SAFETY: as above.
                unsafe { queue.as_ref() }.tell();
            }
        }
        if !self.stopping.borrow().is_empty() {
            self.give_back();
        }
        // Busy while rings have work: the reactor does not nap, since a spent turn leaves requests without a kick.
        c_int::from(has_work | turn.has_work())
    }

    #[cold]
    fn give_back(&self) {
        let waiting = std::mem::take(&mut *self.stopping.borrow_mut());
        for (index, answer) in waiting {
            let Some(queue) = self.find(index) else {
                // The ring was not running: the receiver sees the sender dropped.
                answer.bell.ring();
                continue;
            };
            // SAFETY: every queue in the list is alive.
            let (outstanding, base, fault) = unsafe {
                let queue = queue.as_ref();
                (queue.outstanding(), queue.base(), queue.fault())
            };
            if outstanding > 0 {
                self.stopping.borrow_mut().push((index, answer));
                continue;
            }
            self.queues.borrow_mut().retain(|other| *other != queue);
            let queue = Handover(queue);
            answer.send(Stopped { queue, base, fault });
        }
    }
}

unsafe extern "C" fn poll<I: Io>(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the session that `begin` registered; only `end` frees it, after unregistering this
    // poller, on this thread.
    unsafe { &*argument.cast::<Session<I>>() }.turn()
}
