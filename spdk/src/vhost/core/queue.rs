//! A ring on the worker: takes available requests, and returns completed ones.
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
use spdk_gate::vhost_user::turn::Turn;
use spdk_gate::vhost_user::{Fault, feature};

use super::call::Call;
use super::device::Io;
use super::dirty::Dirty;
use super::journal::Journal;
use super::request::{Request, Slot};
use super::session::Session;

/// Requests taken from a ring per turn.
const BATCH: u32 = 32;

/// The driver wants no interrupts (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// The device wants no kicks (virtio 1.2, 2.7.8).
const NO_NOTIFY: u16 = 1;

/// How a ring's writes are logged.
#[derive(Clone)]
pub(super) struct Logged {
    pub(super) dirty: Dirty,
    /// Guest-physical address of the used ring, if writes to it are logged too.
    pub(super) used: Option<u64>,
}

/// The arguments of a ring.
pub(super) struct Parts {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) features: u64,
    pub(super) places: Places,
    pub(super) call: Option<Call>,
    pub(super) logged: Option<Logged>,
    pub(super) journal: Option<Journal>,
}

/// The slots of a ring and their chains: zeroed memory, most of which is never touched.
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
    /// Used index at the last interrupt decision.
    told: Cell<u16>,
    paused: Cell<bool>,
    stopping: Cell<bool>,
    broken: Cell<bool>,
    fault: Cell<Option<Fault>>,
    outstanding: Cell<u32>,
    call: RefCell<Option<Call>>,
    logged: RefCell<Option<Logged>>,
    journal: Option<Journal>,
    /// Heads to resubmit, in reverse order.
    again: RefCell<Vec<u16>>,
    again_left: Cell<usize>,
    session: Cell<*const Session<I>>,
    slots: Slots<I>,
}

impl<I: Io> Queue<I> {
    /// Creates a ring that continues at its used index. Requests in flight according to its journal are resubmitted
    /// first.
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
        // SAFETY: `queue` comes from a box above, so it is valid and not null; nobody else has it yet.
        unsafe {
            for slot in &(*queue).slots.all {
                slot.queue.set(queue);
            }
            NonNull::new_unchecked(queue)
        }
    }

    /// Returns the ring's number.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// Returns the index of the next request to take. Valid once the ring has stopped.
    pub(super) fn base(&self) -> u16 {
        self.taken.get()
    }

    /// Returns the number of requests taken and not completed.
    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding.get()
    }

    /// Joins a session, which polls the ring, so kicks are suppressed.
    pub(super) fn join(&self, session: *const Session<I>) {
        self.session.set(session);
        self.suppress_kicks();
        // A previous process may have died between a completion and its interrupt; without this one the driver
        // would wait forever.
        self.call_now();
    }

    fn suppress_kicks(&self) {
        if !self.event_index {
            store(self.places.get().used, NO_NOTIFY);
            if let Some(Logged {
                dirty,
                used: Some(address),
            }) = &*self.logged.borrow()
            {
                dirty.note(*address, 2);
            }
        }
        // With event indexes the driver kicks once in 65,536 requests: the index that it compares never changes.
    }

    pub(super) fn pause(&self, paused: bool) {
        self.paused.set(paused);
    }

    pub(super) fn stop(&self) {
        self.stopping.set(true);
    }

    /// Returns the driver's violation after which this ring has stopped processing.
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

    /// Takes available requests, up to a batch or until the turn is spent. Malformed ones count as requests. What is
    /// left is taken in the next turn of the poller, without a kick.
    #[inline]
    pub(super) fn poll(&self, session: &Session<I>, turn: &mut Turn) {
        let mut count = 0;
        while count < BATCH
            && !turn.is_spent()
            && let Some(head) = self.next_head()
        {
            let request = self.begin(session, head);
            turn.took(request.map_or(0, |request| session.io().submit(request)));
            count += 1;
        }
    }

    /// Takes the next request. A malformed one is completed at once with nothing written, and gives `None`.
    pub(super) fn next(&self, session: &Session<I>) -> Option<Request<I>> {
        let head = self.next_head()?;
        self.begin(session, head)
    }

    /// Takes the head descriptor of the next request.
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
        // SAFETY: the slot was not busy, so no request exists that accesses its chain.
        let chain = unsafe { &mut *slot.chain.as_ptr() };
        let table = self.places.get().descriptors;
        let walked = chain.walk(&**view, table, self.size.into(), head, self.indirect);
        slot.memory.set(Some(Rc::clone(&view)));
        // SAFETY: the slot is busy, its chain filled in or empty, and this is its only request.
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

    /// Returns a request to the driver.
    #[inline]
    pub(super) fn complete(&self, slot: &Slot<I>, written: u32) {
        let (places, used) = (self.places.get(), self.used.get());
        let entry = places.used + 4 + usize::from(used & (self.size - 1)) * 8;
        let next = used.wrapping_add(1);
        if self.logged.borrow().is_some() {
            self.log_data(slot);
        }
        let both = u64::from(slot.head) | u64::from(written) << 32;
        // SAFETY: an entry of the used ring, which the session's memory keeps mapped, aligned to 4 bytes. The
        // driver does not read it before the used index covers it.
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
        // SAFETY: a queue with outstanding requests has joined a session, which lives until none is outstanding.
        unsafe { (*self.session.get()).one_less() };
    }

    #[cold]
    fn log_data(&self, slot: &Slot<I>) {
        let view = slot.memory.take();
        // SAFETY: the request has ended, so nobody else accesses the chain.
        let chain = unsafe { slot.chain.as_ref() };
        if let (Some(logged), Some(view)) = (&*self.logged.borrow(), &view) {
            for segment in chain.written() {
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

    /// Interrupts the driver if requests were completed since the last decision and the driver asks for it.
    #[inline]
    pub(super) fn tell(&self) {
        let (used, told) = (self.used.get(), self.told.get());
        if used == told {
            return;
        }
        // Orders the write of the used index before the read of the driver's suppression state, which would race
        // otherwise (virtio 1.2, 2.7.7).
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
        // SAFETY: the layout is not empty: a ring's size is not 0.
        let chains = unsafe { alloc_zeroed(layout) }.cast::<Chain>();
        let Some(chains) = NonNull::new(chains) else {
            handle_alloc_error(layout)
        };
        let slot = |head: u16| Slot {
            queue: Cell::new(std::ptr::null()),
            head,
            busy: Cell::new(false),
            memory: Cell::new(None),
            // SAFETY: within the allocation of `size` chains; an all-zero chain is a valid, empty one.
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
        // SAFETY: allocated by `new` with this layout; chains have no destructor.
        unsafe { dealloc(self.chains.as_ptr().cast(), Self::layout(self.all.len())) };
    }
}

/// Reads a 16-bit word of a ring; acquires what was written before it.
#[inline]
fn load(address: usize) -> u16 {
    // SAFETY: part of a ring that was located in mapped memory, aligned. The driver accesses it concurrently, hence
    // the atomic.
    let half = unsafe { AtomicU16::from_ptr(std::ptr::with_exposed_provenance_mut(address)) };
    u16::from_le(half.load(Ordering::Acquire))
}

/// Reads a 16-bit word of a ring, without ordering.
#[inline]
fn peek(address: usize) -> u16 {
    // SAFETY: as in `load`.
    let half = unsafe { AtomicU16::from_ptr(std::ptr::with_exposed_provenance_mut(address)) };
    u16::from_le(half.load(Ordering::Relaxed))
}

/// Writes a 16-bit word of a ring; releases what was written before it.
#[inline]
fn store(address: usize, value: u16) {
    // SAFETY: as in `load`.
    let half = unsafe { AtomicU16::from_ptr(std::ptr::with_exposed_provenance_mut(address)) };
    half.store(value.to_le(), Ordering::Release);
}
