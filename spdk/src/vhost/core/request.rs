//! One request of a driver: a descriptor chain that was copied once and checked, in a slot of its ring.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;

use spdk_gate::vhost_user::chain::{Chain, Segment, pieces};

use super::device::Io;
use super::memory::View;
use super::queue::Queue;

/// A place for one request, by the index of its first descriptor. On the worker.
///
/// The chain, the large part, lies elsewhere, and is not touched before it is used.
pub(crate) struct Slot<I: Io> {
    pub(super) queue: Cell<*const Queue<I>>,
    pub(super) head: u16,
    pub(super) busy: Cell<bool>,
    /// Keeps the memory that `chain` points to.
    pub(super) memory: Cell<Option<Rc<View>>>,
    pub(super) chain: NonNull<Chain>,
    pub(super) context: I::Context,
}

/// A request under way. Dropping it completes it with nothing written.
pub(crate) struct Request<I: Io>(NonNull<Slot<I>>);

impl<I: Io> Request<I> {
    /// The request of a slot.
    ///
    /// # Safety
    /// The slot is busy, its chain is filled in, and there is no other `Request` of it.
    #[inline]
    pub(super) unsafe fn of(slot: &Slot<I>) -> Self {
        Self(NonNull::from(slot))
    }

    #[inline]
    fn slot(&self) -> &Slot<I> {
        // SAFETY: a queue keeps its slots until none is busy, and this one is until it is completed.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn chain(&self) -> &Chain {
        // SAFETY: only this request touches the chain of its slot, and through `&mut self` to change it.
        unsafe { self.slot().chain.as_ref() }
    }

    #[inline]
    fn chain_mut(&mut self) -> &mut Chain {
        // SAFETY: as in `chain`.
        unsafe { &mut *self.slot().chain.as_ptr() }
    }

    /// The queue that it came by.
    pub(crate) fn queue(&self) -> u16 {
        // SAFETY: a queue stays until none of its slots is busy.
        unsafe { (*self.slot().queue.get()).index() }
    }

    /// What the device keeps with it.
    #[inline]
    pub(crate) fn context(&self) -> &I::Context {
        &self.slot().context
    }

    /// Data to read, without what was taken.
    #[inline]
    pub(crate) fn readable(&self) -> &[Segment] {
        self.chain().readable()
    }

    /// Room to write, without what was reserved.
    #[inline]
    pub(crate) fn writable(&self) -> &[Segment] {
        self.chain().writable()
    }

    /// Bytes of [`readable`](Self::readable).
    #[inline]
    pub(crate) fn readable_len(&self) -> u64 {
        self.chain().readable_len()
    }

    /// Bytes of [`writable`](Self::writable).
    #[inline]
    pub(crate) fn writable_len(&self) -> u64 {
        self.chain().writable_len()
    }

    /// Copies the first bytes of what is to read, and removes them. `false` if there are not that many.
    #[inline]
    pub(crate) fn take(&mut self, bytes: &mut [u8]) -> bool {
        let chain = self.chain_mut();
        chain.take(bytes.len() as u64, |at, piece| {
            // SAFETY: the piece lies in guest memory that the slot keeps mapped, and in `bytes`, whose
            // length bounds all pieces. The guest may write meanwhile: any bytes are good.
            unsafe {
                let from = std::ptr::with_exposed_provenance::<u8>(piece.base);
                from.copy_to_nonoverlapping(bytes.as_mut_ptr().add(at), piece.len);
            }
        })
    }

    /// Removes bytes from the front of the room to write, for [`respond`](Self::respond). `false` if there are
    /// not that many, or in too many pieces.
    pub(crate) fn reserve_front(&mut self, bytes: usize) -> bool {
        self.chain_mut().reserve_front(bytes as u64)
    }

    /// The same from the end.
    #[inline]
    pub(crate) fn reserve_back(&mut self, bytes: usize) -> bool {
        self.chain_mut().reserve_back(bytes as u64)
    }

    /// Writes to what was reserved.
    #[inline]
    pub(crate) fn respond(&self, bytes: &[u8]) {
        self.scatter(self.chain().answer(), 0, bytes);
    }

    /// Writes into the room from `offset` on; how many bytes had room.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> usize {
        self.scatter(self.writable(), offset, bytes)
    }

    #[inline]
    fn scatter(&self, segments: &[Segment], offset: u64, bytes: &[u8]) -> usize {
        let mut written = 0;
        for (at, piece) in pieces(segments, offset, bytes.len()) {
            // SAFETY: the piece lies in guest memory that the slot keeps mapped, and `pieces` gives no more
            // than the bytes that there are. What the guest does there meanwhile is its own affair.
            unsafe {
                let to = std::ptr::with_exposed_provenance_mut::<u8>(piece.base);
                bytes.as_ptr().add(at).copy_to_nonoverlapping(to, piece.len);
            }
            written = at + piece.len;
        }
        written
    }

    /// Ends the request; `written` bytes of it were written, the answer included.
    #[inline]
    pub(crate) fn complete(self, written: u32) {
        let slot = self.0;
        std::mem::forget(self);
        // SAFETY: as in `slot`; the request is gone, so nobody else has the slot.
        unsafe { (*slot.as_ref().queue.get()).complete(slot.as_ref(), written) };
    }

    /// For the argument of a C callback, which takes it back with [`from_raw`](Self::from_raw).
    #[inline]
    pub(crate) fn into_raw(self) -> *mut c_void {
        let slot = self.0;
        std::mem::forget(self);
        slot.as_ptr().cast()
    }

    /// Takes a request back from C.
    ///
    /// # Safety
    /// `raw` is of [`into_raw`](Self::into_raw) of the same kind of device, on this thread, and taken back once.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: the caller's contract: it was made of a pointer that is not null.
        Self(unsafe { NonNull::new_unchecked(raw.cast()) })
    }
}

impl<I: Io> Drop for Request<I> {
    fn drop(&mut self) {
        // SAFETY: as in `complete`, which does not come here.
        unsafe { (*self.slot().queue.get()).complete(self.slot(), 0) };
    }
}
