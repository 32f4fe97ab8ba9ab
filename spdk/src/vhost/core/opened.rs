//! Bdevs opened for devices. The app thread opens and closes them; workers hold a lease while they use them.

use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::cstr::{cstr, string};
use crate::error::{Error, check};
use crate::step::spawn_local;
use crate::timer::sleep;

/// Interval of polling for the release of leases.
const PAUSE: Duration = Duration::from_millis(1);

/// An open bdev, shared by all threads.
pub(crate) struct Bdev {
    /// Open until the last lease is released.
    descriptor: *mut sys::spdk_bdev_desc,
    /// Follows the bdev's size.
    blocks: AtomicU64,
    /// The bdev is being removed: no lease is granted any more.
    removed: AtomicBool,
    /// Number of worker halves that may use the descriptor.
    leases: AtomicU32,
}

// SAFETY: the descriptor is used only by the app thread, and by workers that hold a lease, until which it stays
// open; everything else is atomic.
unsafe impl Send for Bdev {}
// SAFETY: as above.
unsafe impl Sync for Bdev {}

impl Bdev {
    /// Takes a lease on the descriptor; `None` if the bdev is being removed.
    pub(crate) fn lease(&self) -> Option<*mut sys::spdk_bdev_desc> {
        self.leases.fetch_add(1, Ordering::SeqCst);
        if self.removed.load(Ordering::SeqCst) {
            self.release();
            return None;
        }
        Some(self.descriptor)
    }

    /// Releases a lease.
    pub(crate) fn release(&self) {
        self.leases.fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns whether the bdev is being removed.
    #[inline]
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Returns the current number of blocks.
    #[inline]
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }
}

/// The owner of an open bdev, notified of its changes. App thread.
pub(crate) trait Owner: Sized + 'static {
    /// SPDK is removing the bdev, which is closed next.
    fn removed(_opened: &Rc<Opened<Self>>) {}

    /// No lease is granted any more.
    fn retired(&self) {}

    /// The bdev's size has changed.
    fn resized(&self);
}

/// A bdev opened for a device. App thread.
pub(crate) struct Opened<O> {
    spdk: Spdk,
    /// Set by `new`, before the `Opened` is shared.
    bdev: OnceCell<Arc<Bdev>>,
    closed: Cell<bool>,
    owner: O,
}

impl<O: Owner> Opened<O> {
    /// Opens a bdev for writing, and returns what `describe` derives from it.
    pub(crate) fn new<T>(
        spdk: Spdk,
        operation: &'static str,
        name: &str,
        owner: O,
        describe: impl FnOnce(*mut sys::spdk_bdev, Arc<Bdev>) -> T,
    ) -> Result<(Rc<Self>, T), Error> {
        let c_name = cstr("bdev name", name)?;
        let opened = Rc::new(Self {
            spdk,
            bdev: OnceCell::new(),
            closed: Cell::new(false),
            owner,
        });
        let shared = Rc::into_raw(Rc::clone(&opened));
        let argument = shared.cast_mut().cast();
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: runs on the app thread; the name and the output outlive the call; the descriptor owns a reference to
        // `opened` until it is closed, and SPDK delivers no event to a closed descriptor.
        let rc = unsafe {
            let on_event = Some(on_event::<O> as unsafe extern "C" fn(_, _, _));
            sys::spdk_bdev_open_ext(c_name.as_ptr(), true, on_event, argument, &mut descriptor)
        };
        if let Err(error) = check(operation, rc) {
            // SAFETY: the reference that no descriptor has taken.
            drop(unsafe { Rc::from_raw(shared) });
            return Err(error.with_detail(format!("bdev {name:?}")));
        }
        // SAFETY: runs on the app thread; the descriptor was just opened, so its bdev is valid.
        let (bdev, blocks) = unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(descriptor);
            (bdev, sys::spdk_bdev_get_num_blocks(bdev))
        };
        let shared = opened.bdev.get_or_init(|| {
            Arc::new(Bdev {
                descriptor,
                blocks: AtomicU64::new(blocks),
                removed: AtomicBool::new(false),
                leases: AtomicU32::new(0),
            })
        });
        let described = describe(bdev, Arc::clone(shared));
        Ok((opened, described))
    }

    /// Returns the bdev's own name; `None` once SPDK is removing the bdev.
    pub(crate) fn volume(&self) -> Option<String> {
        let bdev = self.bdev.get().filter(|bdev| !bdev.is_removed())?;
        // SAFETY: runs on the app thread, to which an `Rc` of this is bound; the descriptor is closed only once
        // `removed` is set, and keeps its bdev valid until then.
        unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(bdev.descriptor);
            Some(string(sys::spdk_bdev_get_name(bdev)))
        }
    }

    /// Returns the owner.
    pub(crate) fn owner(&self) -> &O {
        &self.owner
    }

    /// Closes the bdev once all leases are released. Idempotent.
    pub(crate) async fn close(self: Rc<Self>) {
        let Some(bdev) = self.bdev.get() else {
            return;
        };
        bdev.removed.store(true, Ordering::SeqCst);
        self.owner.retired();
        while bdev.leases.load(Ordering::SeqCst) > 0 {
            sleep(self.spdk, PAUSE).await;
        }
        if !self.closed.replace(true) {
            // SAFETY: opened by `new` on this thread and closed once, guarded by `closed`; no lease is held, and
            // none is granted any more.
            // Then the reference of the descriptor, which no event follows, is released.
            unsafe {
                sys::spdk_bdev_close(bdev.descriptor);
                Rc::decrement_strong_count(Rc::as_ptr(&self));
            }
        }
    }
}

/// SPDK's event callback of an open bdev.
unsafe extern "C" fn on_event<O: Owner>(
    event: sys::spdk_bdev_event_type,
    bdev: *mut sys::spdk_bdev,
    argument: *mut c_void,
) {
    let opened: *const Opened<O> = argument.cast_const().cast();
    // SAFETY: the pointer that `new` passed, from an `Rc` of which the open descriptor owns a reference; the count is raised before the new `Rc` is made.
    let opened = unsafe {
        Rc::increment_strong_count(opened);
        Rc::from_raw(opened)
    };
    match event {
        sys::spdk_bdev_event_type_SPDK_BDEV_EVENT_REMOVE => {
            O::removed(&opened);
            spawn_local(opened.close());
        }
        sys::spdk_bdev_event_type_SPDK_BDEV_EVENT_RESIZE => {
            // SAFETY: runs on the app thread; the event's bdev is valid during the callback.
            let blocks = unsafe { sys::spdk_bdev_get_num_blocks(bdev) };
            if let Some(bdev) = opened.bdev.get() {
                bdev.blocks.store(blocks, Ordering::Release);
            }
            opened.owner.resized();
        }
        _ => {}
    }
}
