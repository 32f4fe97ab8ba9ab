//! Bdevs that are open for devices: the app thread opens and closes them, workers have a lease while they
//! use them.

use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use spdk_sys as sys;

use crate::cstr::cstr;
use crate::error::{Error, check};
use crate::runtime::Spdk;
use crate::timer::sleep;
use spdk_control::executor::spawn_local;

/// Between two looks at whether the workers have given the bdev back.
const PAUSE: Duration = Duration::from_millis(1);

/// An open bdev, for all threads.
pub(crate) struct Bdev {
    /// Open until nobody has a lease.
    descriptor: *mut sys::spdk_bdev_desc,
    /// Changes with the bdev's size.
    blocks: AtomicU64,
    /// The bdev goes: nobody takes a lease any more.
    removed: AtomicBool,
    /// Halves on workers that may use the descriptor.
    leases: AtomicU32,
}

// SAFETY: the descriptor is used by the app thread, and by workers that have a lease; the rest is atomic.
unsafe impl Send for Bdev {}
// SAFETY: as above.
unsafe impl Sync for Bdev {}

impl Bdev {
    /// Takes a lease on the descriptor, unless the bdev goes.
    pub(crate) fn lease(&self) -> Option<*mut sys::spdk_bdev_desc> {
        self.leases.fetch_add(1, Ordering::SeqCst);
        if self.removed.load(Ordering::SeqCst) {
            self.release();
            return None;
        }
        Some(self.descriptor)
    }

    /// Gives a lease back.
    pub(crate) fn release(&self) {
        self.leases.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the bdev goes.
    #[inline]
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// How many blocks it has now.
    #[inline]
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }
}

/// Who a bdev is open for, and is told of its changes. On the app thread.
pub(crate) trait Owner: Sized + 'static {
    /// The bdev is being removed by SPDK, and is closed next.
    fn removed(_opened: &Rc<Opened<Self>>) {}

    /// Nobody begins to use the bdev any more.
    fn retired(&self) {}

    /// The bdev has another size.
    fn resized(&self);
}

/// A bdev that is open for a device. On the app thread.
pub(crate) struct Opened<O> {
    spdk: Spdk,
    /// Set by `new`, before anyone else has the `Opened`.
    bdev: OnceCell<Arc<Bdev>>,
    closed: Cell<bool>,
    owner: O,
}

impl<O: Owner> Opened<O> {
    /// Opens a bdev for writing, and says what `describe` makes of it.
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
        let argument = Rc::as_ptr(&opened).cast_mut().cast();
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: on the app thread; the name and the output outlive the call; `opened` stays until it has
        // closed the descriptor, and SPDK calls nobody for a closed one.
        let rc = unsafe {
            let on_event = Some(on_event::<O> as unsafe extern "C" fn(_, _, _));
            sys::spdk_bdev_open_ext(c_name.as_ptr(), true, on_event, argument, &mut descriptor)
        };
        check(operation, rc).map_err(|error| error.with_detail(format!("bdev {name:?}")))?;
        // SAFETY: on the app thread, the descriptor just opened: its bdev is there.
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

    /// Who it is open for.
    pub(crate) fn owner(&self) -> &O {
        &self.owner
    }

    /// Closes the bdev once nobody uses it.
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
            // SAFETY: opened by `new` on this thread and not closed before; nobody has a lease, and nobody
            // gets one.
            unsafe { sys::spdk_bdev_close(bdev.descriptor) };
        }
    }
}

/// SPDK's word on a bdev that is open.
unsafe extern "C" fn on_event<O: Owner>(
    event: sys::spdk_bdev_event_type,
    bdev: *mut sys::spdk_bdev,
    argument: *mut c_void,
) {
    let opened: *const Opened<O> = argument.cast_const().cast();
    // SAFETY: what `new` passed: an `Rc` of which somebody has a share while the descriptor is open.
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
            // SAFETY: on the app thread; the bdev is the one that the event is about.
            let blocks = unsafe { sys::spdk_bdev_get_num_blocks(bdev) };
            if let Some(bdev) = opened.bdev.get() {
                bdev.blocks.store(blocks, Ordering::Release);
            }
            opened.owner.resized();
        }
        _ => {}
    }
}
