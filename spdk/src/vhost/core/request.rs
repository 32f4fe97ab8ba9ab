//! A request of a driver: a descriptor chain, copied once and validated, in a slot of its ring.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;

use spdk_gate::vhost_user::chain::{Chain, Segment, pieces};

use super::device::Io;
use super::memory::View;
use super::queue::Queue;

/// The slot of a request, indexed by its head descriptor. Worker thread.
///
/// The chain, the large part, is allocated elsewhere, and not touched before it is used.
pub(crate) struct Slot<I: Io> {
    pub(super) queue: Cell<*const Queue<I>>,
    pub(super) head: u16,
    pub(super) busy: Cell<bool>,
    /// Keeps the memory that `chain` points to mapped.
    pub(super) memory: Cell<Option<Rc<View>>>,
    pub(super) chain: NonNull<Chain>,
    pub(super) context: I::Context,
}

/// A request in flight. Dropping it completes it with nothing written.
pub(crate) struct Request<I: Io>(NonNull<Slot<I>>);

impl<I: Io> Request<I> {
    /// Creates the request of a slot.
    ///
    /// # Safety
    /// The slot is busy, its chain is filled in, and no other `Request` of it exists.
    #[inline]
    pub(super) unsafe fn of(slot: &Slot<I>) -> Self {
        Self(NonNull::from(slot))
    }

    #[inline]
    fn slot(&self) -> &Slot<I> {
        // SAFETY: a queue keeps its slots until none is busy, and this slot is busy until the request is completed.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn chain(&self) -> &Chain {
        // SAFETY: only this request accesses the chain of its slot, mutably only through `&mut self`.
        unsafe { self.slot().chain.as_ref() }
    }

    #[inline]
    fn chain_mut(&mut self) -> &mut Chain {
        // SAFETY: as in `chain`, with `&mut self`.
        unsafe { &mut *self.slot().chain.as_ptr() }
    }

    /// Returns the number of the request's queue.
    pub(crate) fn queue(&self) -> u16 {
        // SAFETY: a queue lives until none of its slots is busy.
        unsafe { (*self.slot().queue.get()).index() }
    }

    /// Returns the device's per-request state.
    #[inline]
    pub(crate) fn context(&self) -> &I::Context {
        &self.slot().context
    }

    /// Returns the segments to read, without what was taken.
    #[inline]
    pub(crate) fn readable(&self) -> &[Segment] {
        self.chain().readable()
    }

    /// Returns the segments to write, without what was reserved.
    #[inline]
    pub(crate) fn writable(&self) -> &[Segment] {
        self.chain().writable()
    }

    /// Returns the bytes of [`readable`](Self::readable).
    #[inline]
    pub(crate) fn readable_len(&self) -> u64 {
        self.chain().readable_len()
    }

    /// Returns the bytes of [`writable`](Self::writable).
    #[inline]
    pub(crate) fn writable_len(&self) -> u64 {
        self.chain().writable_len()
    }

    /// Copies and removes the first bytes to read. `false` if there are fewer.
    #[inline]
    pub(crate) fn take(&mut self, bytes: &mut [u8]) -> bool {
        let chain = self.chain_mut();
        chain.take(bytes.len() as u64, |at, piece| {
            // SAFETY: the piece is in guest memory that the slot keeps mapped; `bytes` has room, since its length
            // bounds the sum of all pieces. The guest may write concurrently: every byte value is valid here.
            unsafe {
                let from = std::ptr::with_exposed_provenance::<u8>(piece.base);
                from.copy_to_nonoverlapping(bytes.as_mut_ptr().add(at), piece.len);
            }
        })
    }

    /// Reserves the first bytes to write for [`respond`](Self::respond). `false` if there are fewer, or in too many
    /// pieces.
    pub(crate) fn reserve_front(&mut self, bytes: usize) -> bool {
        self.chain_mut().reserve_front(bytes as u64)
    }

    /// As [`reserve_front`](Self::reserve_front), for the last bytes.
    #[inline]
    pub(crate) fn reserve_back(&mut self, bytes: usize) -> bool {
        self.chain_mut().reserve_back(bytes as u64)
    }

    /// Records that the first `bytes` of [`writable`](Self::writable) may be written from now on, whether the operation
    /// succeeds or not. Must be called before they are passed to SPDK.
    #[inline]
    pub(crate) fn touch(&mut self, bytes: u64) {
        self.chain_mut().touch(bytes);
    }

    /// Writes the response to the reserved bytes.
    #[inline]
    pub(crate) fn respond(&mut self, bytes: &[u8]) {
        self.chain_mut().note_answer();
        self.scatter(self.chain().answer(), 0, bytes);
    }

    /// Writes to the segments from `offset` on. Returns the number of bytes that fit.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> usize {
        self.touch(offset.saturating_add(bytes.len() as u64));
        self.scatter(self.writable(), offset, bytes)
    }

    #[inline]
    fn scatter(&self, segments: &[Segment], offset: u64, bytes: &[u8]) -> usize {
        let mut written = 0;
        for (at, piece) in pieces(segments, offset, bytes.len()) {
            // SAFETY: the piece is in guest memory that the slot keeps mapped; `pieces` yields no more than the
            // length of `bytes` in total. The guest may access it concurrently, which affects only the guest.
            unsafe {
                let to = std::ptr::with_exposed_provenance_mut::<u8>(piece.base);
                bytes.as_ptr().add(at).copy_to_nonoverlapping(to, piece.len);
            }
            written = at + piece.len;
        }
        written
    }

    /// Completes the request. `written` is the number of bytes written, response included.
    #[inline]
    pub(crate) fn complete(self, written: u32) {
        let slot = self.0;
        std::mem::forget(self);
        // SAFETY: as in `slot`; the request was forgotten, so nobody else uses the slot.
        unsafe { (*slot.as_ref().queue.get()).complete(slot.as_ref(), written) };
    }

    /// Turns the request into a callback argument for C; taken back by [`from_raw`](Self::from_raw).
    #[inline]
    pub(crate) fn into_raw(self) -> *mut c_void {
        let slot = self.0;
        std::mem::forget(self);
        slot.as_ptr().cast()
    }

    /// Takes ownership of a request back from C.
    ///
    /// # Safety
    /// `raw` comes from [`into_raw`](Self::into_raw) of the same kind of device, on this thread, and is taken back
    /// once.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: by the caller's contract `raw` comes from a non-null slot pointer.
        Self(unsafe { NonNull::new_unchecked(raw.cast()) })
    }
}

impl<I: Io> Drop for Request<I> {
    fn drop(&mut self) {
        // SAFETY: as in `complete`, which forgets the request and so does not drop it.
        unsafe { (*self.slot().queue.get()).complete(self.slot(), 0) };
    }
}
