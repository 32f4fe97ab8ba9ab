//! A ring on the worker: takes what the driver made available, gives back what is done.
//!
//! ```text
//! available index ─► head ─► chain copied, checked ─► Io::submit ─► Request::complete ─► used index
//!      (acquire)      └ journal: in flight                           (release) └ journal: done
//! ```

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use spdk_gate::vhost_user::chain::Chain;
use spdk_gate::vhost_user::ring::{Places, available, wants_event};
use spdk_gate::vhost_user::{Fault, feature};

use super::call::Call;
use super::device::Io;
use super::dirty::Dirty;
use super::journal::Journal;
use super::request::{Request, Slot};
use super::session::Session;

/// Requests that are taken of a ring in one turn.
const BATCH: u32 = 32;

/// The driver wants no calls (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// The device wants no kicks (virtio 1.2, 2.7.8).
const NO_NOTIFY: u16 = 1;

/// How writes of a ring are logged.
#[derive(Clone)]
pub(super) struct Logged {
    pub(super) dirty: Dirty,
    /// The guest-physical address of the used ring, if writes to it are logged too.
    pub(super) used: Option<u64>,
}

/// What a ring is made of.
pub(super) struct Parts {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) features: u64,
    pub(super) places: Places,
    pub(super) call: Option<Call>,
    pub(super) logged: Option<Logged>,
    pub(super) journal: Option<Journal>,
}

/// Slots of a ring, and their chains: zeroed memory of which most is never touched.
struct Slots<I: Io> {
    all: Box<[Slot<I>]>,
    chains: NonNull<Chain>,
}

/// A ring.
pub(crate) struct Queue<I: Io> {
    index: u16,
    size: u16,
    event_index: bool,
    indirect: bool,
    places: Cell<Places>,
    /// Index of the next request to take.
    taken: Cell<u16>,
    /// Index of the next used entry.
    used: Cell<u16>,
    /// Used index when the driver was last called.
    told: Cell<u16>,
    paused: Cell<bool>,
    stopping: Cell<bool>,
    broken: Cell<bool>,
    fault: Cell<Option<Fault>>,
    outstanding: Cell<u32>,
    call: RefCell<Option<Call>>,
    logged: RefCell<Option<Logged>>,
    journal: Option<Journal>,
    /// Heads to take again, the last one first.
    again: RefCell<Vec<u16>>,
    again_left: Cell<usize>,
    session: Cell<*const Session<I>>,
    slots: Slots<I>,
}

impl<I: Io> Queue<I> {
    /// A ring that continues where its used index says; what is in flight according to its journal is
    /// taken again first.
    pub(super) fn new(parts: Parts) -> NonNull<Self> {
        let used = load(parts.places.used + 2);
        let mut again = match &parts.journal {
            Some(journal) => journal.recover(used),
            None => Vec::new(),
        };
        let taken = used.wrapping_add(u16::try_from(again.len()).unwrap_or_default());
        again.reverse();
        let queue = Box::into_raw(Box::new(Self {
            index: parts.index,
            size: parts.size,
            event_index: parts.features & feature::EVENT_INDEX != 0,
            indirect: parts.features & feature::INDIRECT != 0,
            places: Cell::new(parts.places),
            taken: Cell::new(taken),
            used: Cell::new(used),
            told: Cell::new(used),
            paused: Cell::new(false),
            stopping: Cell::new(false),
            broken: Cell::new(false),
            fault: Cell::new(None),
            outstanding: Cell::new(0),
            call: RefCell::new(parts.call),
            logged: RefCell::new(parts.logged),
            journal: parts.journal,
            again_left: Cell::new(again.len()),
            again: RefCell::new(again),
            session: Cell::new(std::ptr::null()),
            slots: Slots::new(parts.size),
        }));
        // SAFETY: made of a box above.
        unsafe {
            for slot in &(*queue).slots.all {
                slot.queue.set(queue);
            }
            NonNull::new_unchecked(queue)
        }
    }

    /// Its number.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// The index of the next request to take, once it has stopped.
    pub(super) fn base(&self) -> u16 {
        self.taken.get()
    }

    /// Requests that were taken and are not completed.
    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding.get()
    }

    /// Takes part in a session. Kicks are not needed any more.
    pub(super) fn join(&self, session: *const Session<I>) {
        self.session.set(session);
        self.suppress_kicks();
        // A call that was lost with another process of ours would have the driver wait for ever.
        self.call_now();
    }

    fn suppress_kicks(&self) {
        if !self.event_index {
            store(self.places.get().used, NO_NOTIFY);
        }
        // Otherwise the driver kicks once in 65,536 requests: the index that it compares never moves.
    }

    pub(super) fn pause(&self, paused: bool) {
        self.paused.set(paused);
    }

    pub(super) fn stop(&self) {
        self.stopping.set(true);
    }

    /// What the driver did that this ring does not go on after.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.get()
    }

    pub(super) fn move_to(&self, places: Places) {
        self.places.set(places);
        self.suppress_kicks();
    }

    pub(super) fn set_call(&self, call: Option<Call>) -> Option<Call> {
        let before = self.call.replace(call);
        self.call_now();
        before
    }

    pub(super) fn set_logged(&self, logged: Option<Logged>) -> Option<Logged> {
        self.logged.replace(logged)
    }

    /// Takes what is available, up to a batch. How many requests it was, malformed ones too.
    #[inline]
    pub(super) fn poll(&self, session: &Session<I>) -> u32 {
        let mut count = 0;
        while count < BATCH
            && let Some(head) = self.next_head()
        {
            if let Some(request) = self.begin(session, head) {
                session.io().submit(request);
            }
            count += 1;
        }
        count
    }

    /// The next request, if it is well-formed. What is not is completed at once, with nothing done.
    pub(super) fn next(&self, session: &Session<I>) -> Option<Request<I>> {
        let head = self.next_head()?;
        self.begin(session, head)
    }

    /// The first descriptor of the next request.
    #[inline]
    fn next_head(&self) -> Option<u16> {
        if self.paused.get() | self.stopping.get() | self.broken.get() {
            return None;
        }
        if self.again_left.get() > 0 {
            return self.head_again();
        }
        let places = self.places.get();
        let taken = self.taken.get();
        let index = load(places.available + 2);
        match available(index, taken, self.size) {
            Some(0) => return None,
            Some(_) => {}
            None => {
                self.break_off("the available index must be at most the ring ahead", index);
                return None;
            }
        }
        let at = usize::from(taken & (self.size - 1));
        self.taken.set(taken.wrapping_add(1));
        Some(peek(places.available + 4 + at * 2))
    }

    #[cold]
    fn head_again(&self) -> Option<u16> {
        let mut again = self.again.borrow_mut();
        let head = again.pop();
        self.again_left.set(again.len());
        head
    }

    #[inline]
    fn begin(&self, session: &Session<I>, head: u16) -> Option<Request<I>> {
        let Some(slot) = self.slots.get(head) else {
            self.break_off("an available entry must be below the ring's size", head);
            return None;
        };
        if slot.busy.replace(true) {
            self.break_off("a descriptor must not be available twice", head);
            return None;
        }
        if let Some(journal) = &self.journal {
            journal.begin(head);
        }
        self.outstanding.set(self.outstanding.get() + 1);
        session.one_more();
        let view = session.view();
        // SAFETY: the slot was not busy, so no request has it.
        let chain = unsafe { &mut *slot.chain.as_ptr() };
        let table = self.places.get().descriptors;
        let walked = chain.walk(&**view, table, self.size.into(), head, self.indirect);
        slot.memory.set(Some(Rc::clone(&view)));
        // SAFETY: busy, filled in or empty, and the only request of it.
        let request = unsafe { Request::of(slot) };
        match walked {
            Ok(()) => Some(request),
            Err(broken) => {
                session.note_broken(broken);
                request.complete(0);
                None
            }
        }
    }

    #[cold]
    fn break_off(&self, what: &'static str, value: u16) {
        self.broken.set(true);
        self.fault.set(Some(Fault::new(what, value.into())));
    }

    /// Gives a request back to the driver.
    #[inline]
    pub(super) fn complete(&self, slot: &Slot<I>, written: u32) {
        let (places, used) = (self.places.get(), self.used.get());
        let entry = places.used + 4 + usize::from(used & (self.size - 1)) * 8;
        let next = used.wrapping_add(1);
        if self.logged.borrow().is_some() {
            self.log_data(slot);
        }
        let both = u64::from(slot.head) | u64::from(written) << 32;
        // SAFETY: an entry of the used ring, which the session's memory keeps mapped; the driver does not
        // look at it before the index says so. It is aligned to 4 bytes.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<u64>(entry).write_unaligned(both.to_le());
        }
        if let Some(journal) = &self.journal {
            journal.completing(slot.head);
        }
        store(places.used + 2, next);
        self.used.set(next);
        if let Some(journal) = &self.journal {
            journal.completed(slot.head, next);
        }
        if self.logged.borrow().is_some() {
            self.log_used(used);
        }
        slot.memory.set(None);
        slot.busy.set(false);
        self.outstanding.set(self.outstanding.get() - 1);
        // SAFETY: a queue with requests has joined a session, which stays until none is outstanding.
        unsafe { (*self.session.get()).one_less() };
    }

    #[cold]
    fn log_data(&self, slot: &Slot<I>) {
        let view = slot.memory.take();
        // SAFETY: the request has ended: nobody else has the chain.
        let chain = unsafe { slot.chain.as_ref() };
        if let (Some(logged), Some(view)) = (&*self.logged.borrow(), &view) {
            for segment in chain.writable().iter().chain(chain.answer()) {
                logged.dirty.note_host(view, segment.base, segment.len);
            }
        }
        slot.memory.set(view);
    }

    #[cold]
    fn log_used(&self, used: u16) {
        if let Some(logged) = &*self.logged.borrow()
            && let Some(address) = logged.used
        {
            let entry = u64::from(used & (self.size - 1)) * 8;
            logged.dirty.note(address.saturating_add(4 + entry), 8);
            logged.dirty.note(address, 4);
        }
    }

    /// Calls the driver if something was completed since it was last called, and it wants to know.
    #[inline]
    pub(super) fn tell(&self) {
        let (used, told) = (self.used.get(), self.told.get());
        if used == told {
            return;
        }
        // The used index is written before it is read what the driver wants (virtio 1.2, 2.7.7).
        fence(Ordering::SeqCst);
        self.told.set(used);
        let available = self.places.get().available;
        let wanted = match self.event_index {
            true => {
                let event = peek(available + 4 + usize::from(self.size) * 2);
                wants_event(event, used, told)
            }
            false => peek(available) & NO_INTERRUPT == 0,
        };
        if wanted {
            self.call_now();
        }
    }

    fn call_now(&self) {
        if let Some(call) = &*self.call.borrow() {
            call.ring();
        }
    }
}

impl<I: Io> Slots<I> {
    fn layout(count: usize) -> Layout {
        match Layout::array::<Chain>(count) {
            Ok(layout) => layout,
            Err(_) => unreachable!("a ring has 1024 slots at most"),
        }
    }

    fn new(size: u16) -> Self {
        let layout = Self::layout(size.into());
        // SAFETY: the layout is not empty: a ring has a size.
        let chains = unsafe { alloc_zeroed(layout) }.cast::<Chain>();
        let Some(chains) = NonNull::new(chains) else {
            handle_alloc_error(layout)
        };
        let slot = |head: u16| Slot {
            queue: Cell::new(std::ptr::null()),
            head,
            busy: Cell::new(false),
            memory: Cell::new(None),
            // SAFETY: a place of the allocation; a chain of zeroes is an empty one.
            chain: unsafe { chains.add(head.into()) },
            context: I::Context::default(),
        };
        let all = (0..size).map(slot).collect();
        Self { all, chains }
    }

    #[inline]
    fn get(&self, head: u16) -> Option<&Slot<I>> {
        self.all.get(usize::from(head))
    }
}

impl<I: Io> Drop for Slots<I> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout; chains need no dropping.
        unsafe { dealloc(self.chains.as_ptr().cast(), Self::layout(self.all.len())) };
    }
}

/// A half word of a ring, with what was written before it.
#[inline]
fn load(address: usize) -> u16 {
    // SAFETY: part of a ring that was located in mapped memory, aligned; the driver writes it atomically.
    let half = unsafe { AtomicU16::from_ptr(std::ptr::with_exposed_provenance_mut(address)) };
    u16::from_le(half.load(Ordering::Acquire))
}

/// A half word of a ring.
#[inline]
fn peek(address: usize) -> u16 {
    // SAFETY: as in `load`.
    let half = unsafe { AtomicU16::from_ptr(std::ptr::with_exposed_provenance_mut(address)) };
    u16::from_le(half.load(Ordering::Relaxed))
}

/// Writes a half word of a ring, after all that was written before.
#[inline]
fn store(address: usize, value: u16) {
    // SAFETY: as in `load`.
    let half = unsafe { AtomicU16::from_ptr(std::ptr::with_exposed_provenance_mut(address)) };
    half.store(value.to_le(), Ordering::Release);
}
