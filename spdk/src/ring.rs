//! SPDK's lock-free ring, typed: it transfers ownership of boxes.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;

use spdk_sys as sys;

use crate::error::Error;

/// A bounded FIFO between threads, in SPDK's memory. Multiple producers, single consumer.
pub(crate) struct Ring<T> {
    raw: NonNull<sys::spdk_ring>,
    owns: PhantomData<Box<T>>,
}

// SAFETY: the ring moves each box from one thread to another exactly once, which `T: Send` allows; the ring's own
// state is atomic.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: `push` and `is_empty` are thread-safe (multi-producer ring); `pop`, which is not, is unsafe.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T: Send> Ring<T> {
    /// Creates a ring for at most `capacity - 1` boxes; `capacity` must be a power of two. SPDK's environment must
    /// be initialized, and outlive the ring.
    pub(crate) fn many_producers(capacity: usize) -> Result<Self, Error> {
        debug_assert!(capacity.is_power_of_two());
        // SAFETY: takes plain values; a null result is handled below.
        let raw = unsafe {
            sys::spdk_ring_create(
                sys::spdk_ring_type_SPDK_RING_TYPE_MP_SC,
                capacity,
                sys::SPDK_ENV_NUMA_ID_ANY,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| Error::new("create ring", libc::ENOMEM))?;
        Ok(Self {
            raw,
            owns: PhantomData,
        })
    }

    /// Appends a box, or returns it if the ring is full.
    pub(crate) fn push(&self, item: Box<T>) -> Result<(), Box<T>> {
        let raw = Box::into_raw(item);
        let mut object: *mut c_void = raw.cast();
        // SAFETY: the ring lives as long as `self`; one object is read from `object`, which outlives the call; a
        // null free-space output is allowed.
        let taken = unsafe {
            sys::spdk_ring_enqueue(self.raw.as_ptr(), &mut object, 1, std::ptr::null_mut())
        };
        if taken == 1 {
            return Ok(());
        }
        // SAFETY: `raw` comes from Box::into_raw above, and the ring did not take it, so ownership is still here.
        Err(unsafe { Box::from_raw(raw) })
    }

    /// Returns whether the ring is empty at this moment.
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: the ring lives as long as `self`; counting is safe on any thread.
        unsafe { sys::spdk_ring_count(self.raw.as_ptr()) == 0 }
    }

    /// Removes the oldest box.
    ///
    /// # Safety
    /// Only one thread at a time may consume a ring.
    pub(crate) unsafe fn pop(&self) -> Option<Box<T>> {
        let mut object: *mut c_void = std::ptr::null_mut();
        // SAFETY: the ring lives as long as `self`, `object` has room for one object, and by the caller's contract
        // there is no other consumer.
        let taken = unsafe { sys::spdk_ring_dequeue(self.raw.as_ptr(), &mut object, 1) };
        // SAFETY: every object in the ring comes from Box::into_raw in `push`, and is dequeued once.
        (taken == 1).then(|| unsafe { Box::from_raw(object.cast()) })
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let mut object: *mut c_void = std::ptr::null_mut();
        // SAFETY: `&mut self` excludes other producers and consumers; `object` has room for one object.
        while unsafe { sys::spdk_ring_dequeue(self.raw.as_ptr(), &mut object, 1) } == 1 {
            // SAFETY: every object in the ring comes from Box::into_raw in `push`, and is dequeued once.
            drop(unsafe { Box::<T>::from_raw(object.cast()) });
        }
        // SAFETY: created by spdk_ring_create, now empty, and freed only here.
        unsafe { sys::spdk_ring_free(self.raw.as_ptr()) };
    }
}
