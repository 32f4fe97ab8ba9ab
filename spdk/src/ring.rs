//! SPDK's lock-free ring, typed: it carries boxes.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;

use spdk_sys as sys;

use crate::error::Error;

/// A bounded first-in first-out queue between threads, in SPDK's memory.
pub(crate) struct Ring<T> {
    raw: NonNull<sys::spdk_ring>,
    owns: PhantomData<Box<T>>,
}

// SAFETY: the ring hands each box from one thread to another exactly once, which
// `T: Send` allows; its own state is atomic.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above; the one operation that is not for many threads is unsafe.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T: Send> Ring<T> {
    /// A ring for at most `capacity - 1` boxes; `capacity` is a power of two.
    /// SPDK's environment must be up, and stay until the ring is dropped.
    pub(crate) fn many_producers(capacity: usize) -> Result<Self, Error> {
        debug_assert!(capacity.is_power_of_two());
        // SAFETY: plain values; a null result is handled.
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

    /// Puts a box in, or gives it back when the ring is full.
    pub(crate) fn push(&self, item: Box<T>) -> Result<(), Box<T>> {
        let raw = Box::into_raw(item);
        let mut object: *mut c_void = raw.cast();
        // SAFETY: the ring lives as long as `self`; one object is offered, from
        // a place that outlives the call, and no free-space output is asked for.
        let taken = unsafe {
            sys::spdk_ring_enqueue(self.raw.as_ptr(), &mut object, 1, std::ptr::null_mut())
        };
        if taken == 1 {
            return Ok(());
        }
        // SAFETY: made from a box above, and the ring did not take it.
        Err(unsafe { Box::from_raw(raw) })
    }

    /// Whether nothing is in it, at this moment.
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: the ring lives as long as `self`; any thread may count.
        unsafe { sys::spdk_ring_count(self.raw.as_ptr()) == 0 }
    }

    /// Takes the oldest box out.
    ///
    /// # Safety
    /// One thread at a time consumes a ring.
    pub(crate) unsafe fn pop(&self) -> Option<Box<T>> {
        let mut object: *mut c_void = std::ptr::null_mut();
        // SAFETY: the ring lives as long as `self`, there is room for one
        // object, and the caller is the only consumer.
        let taken = unsafe { sys::spdk_ring_dequeue(self.raw.as_ptr(), &mut object, 1) };
        // SAFETY: what is in the ring was put there by `push`, from a box.
        (taken == 1).then(|| unsafe { Box::from_raw(object.cast()) })
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let mut object: *mut c_void = std::ptr::null_mut();
        // SAFETY: `&mut self`: no other producer or consumer is left; what comes
        // out is a box that `push` put in.
        while unsafe { sys::spdk_ring_dequeue(self.raw.as_ptr(), &mut object, 1) } == 1 {
            // SAFETY: see above.
            drop(unsafe { Box::<T>::from_raw(object.cast()) });
        }
        // SAFETY: made by spdk_ring_create, empty, freed once.
        unsafe { sys::spdk_ring_free(self.raw.as_ptr()) };
    }
}
