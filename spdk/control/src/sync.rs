//! Atomics, locks and cells: those of the standard library and parking_lot, or those of loom's model.

#[cfg(loom)]
pub(crate) use loom::cell::{ConstPtr, UnsafeCell};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::thread::yield_now;

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::thread::yield_now;

#[cfg(not(loom))]
pub(crate) use cell::{ConstPtr, UnsafeCell};

/// A lock that is tried, never waited for.
pub(crate) struct TryLock {
    #[cfg(loom)]
    lock: loom::sync::Mutex<()>,
    #[cfg(not(loom))]
    lock: parking_lot::Mutex<()>,
}

#[cfg(loom)]
pub(crate) type TryLockGuard<'a> = loom::sync::MutexGuard<'a, ()>;
#[cfg(not(loom))]
pub(crate) type TryLockGuard<'a> = parking_lot::MutexGuard<'a, ()>;

impl TryLock {
    pub(crate) fn new() -> Self {
        Self {
            lock: Default::default(),
        }
    }

    pub(crate) fn try_lock(&self) -> Option<TryLockGuard<'_>> {
        #[cfg(loom)]
        return self.lock.try_lock().ok();
        #[cfg(not(loom))]
        self.lock.try_lock()
    }
}

/// The interface of loom's cell, which checks each access for races.
#[cfg(not(loom))]
mod cell {
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    /// Read access to the cell.
    pub(crate) struct ConstPtr<T>(*const T);

    /// Write access to the cell.
    pub(crate) struct MutPtr<T>(*mut T);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        pub(crate) fn get(&self) -> ConstPtr<T> {
            ConstPtr(self.0.get())
        }

        pub(crate) fn get_mut(&self) -> MutPtr<T> {
            MutPtr(self.0.get())
        }
    }

    impl<T> ConstPtr<T> {
        /// # Safety
        /// The cell outlives the returned reference, and nobody writes to it meanwhile.
        pub(crate) unsafe fn deref(&self) -> &T {
            // SAFETY: the caller guarantees that the cell is alive and not written to for the reference's lifetime.
            unsafe { &*self.0 }
        }
    }

    impl<T> MutPtr<T> {
        /// # Safety
        /// The cell outlives the returned reference, and nobody else accesses it meanwhile.
        #[expect(clippy::mut_from_ref, reason = "that of the cell, which is shared")]
        pub(crate) unsafe fn deref(&self) -> &mut T {
            // SAFETY: the caller guarantees that the cell is alive and accessed by nobody else for the reference's
            // lifetime.
            unsafe { &mut *self.0 }
        }
    }
}
