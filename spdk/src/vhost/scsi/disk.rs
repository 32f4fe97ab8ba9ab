//! The bdev of a SCSI target: the app thread opens and closes it, workers have a lease while they use it.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use spdk_gate::vhost_user::scsi::{Geometry, Identity};
use spdk_sys as sys;

use super::Controller;
use crate::cstr::{cstr, string};
use crate::error::{Error, check};
use crate::executor::spawn_local;
use crate::runtime::Spdk;
use crate::timer::sleep;

/// Between two looks at whether the workers have given the bdev back.
const PAUSE: Duration = Duration::from_millis(1);

/// A bdev as a disk, for all threads.
pub(super) struct Disk {
    /// Open until nobody has a lease.
    descriptor: *mut sys::spdk_bdev_desc,
    geometry: Geometry,
    /// Changes with the bdev's size.
    pub(super) blocks: AtomicU64,
    pub(super) identity: Identity,
    pub(super) flushes: bool,
    pub(super) needs_dma: bool,
    /// The bdev goes: nobody takes a lease any more.
    pub(super) removed: AtomicBool,
    leases: AtomicU32,
}

// SAFETY: the descriptor is used by the app thread, and by workers that have a lease; the rest is plain or
// atomic.
unsafe impl Send for Disk {}
// SAFETY: as above.
unsafe impl Sync for Disk {}

impl Disk {
    /// Takes a lease on the descriptor, unless the bdev goes.
    pub(super) fn lease(&self) -> Option<*mut sys::spdk_bdev_desc> {
        self.leases.fetch_add(1, Ordering::SeqCst);
        if self.removed.load(Ordering::SeqCst) {
            self.release();
            return None;
        }
        Some(self.descriptor)
    }

    pub(super) fn release(&self) {
        self.leases.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    /// # Safety
    /// On the app thread; the descriptor is open.
    unsafe fn of(descriptor: *mut sys::spdk_bdev_desc) -> Self {
        use sys::{
            spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_FLUSH as FLUSH,
            spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_UNMAP as UNMAP,
            spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_WRITE_ZEROES as ZEROES,
        };
        // SAFETY: the caller's contract: the bdev is there as long as the descriptor is open.
        unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(descriptor);
            let supports = |io_type| sys::spdk_bdev_io_type_supported(bdev, io_type);
            let mut product = [b' '; 16];
            let name = string(sys::spdk_bdev_get_product_name(bdev));
            for (place, letter) in product.iter_mut().zip(name.bytes()) {
                *place = letter;
            }
            let blocks = sys::spdk_bdev_get_num_blocks(bdev);
            Self {
                descriptor,
                geometry: Geometry {
                    block_size: sys::spdk_bdev_get_block_size(bdev),
                    physical_block_size: sys::spdk_bdev_get_physical_block_size(bdev),
                    blocks,
                    unmap: supports(UNMAP),
                    zeroes: supports(ZEROES),
                },
                blocks: AtomicU64::new(blocks),
                identity: Identity {
                    uuid: (*sys::spdk_bdev_get_uuid(bdev)).u.raw,
                    product,
                },
                flushes: supports(FLUSH),
                needs_dma: sys::opi_bdev_needs_dma(bdev),
                removed: AtomicBool::new(false),
                leases: AtomicU32::new(0),
            }
        }
    }
}

/// A disk that is open. On the app thread.
pub(super) struct Opened {
    spdk: Spdk,
    /// Null once it has been closed.
    descriptor: Cell<*mut sys::spdk_bdev_desc>,
    disk: RefCell<Option<Arc<Disk>>>,
    /// Whose it is, and which target of it.
    owner: (Weak<Controller>, u8),
}

impl Opened {
    pub(super) fn new(
        spdk: Spdk,
        operation: &'static str,
        name: &str,
        owner: (Weak<Controller>, u8),
    ) -> Result<(Rc<Self>, Arc<Disk>), Error> {
        let c_name = cstr("bdev name", name)?;
        let opened = Rc::new(Self {
            spdk,
            descriptor: Cell::new(std::ptr::null_mut()),
            disk: RefCell::new(None),
            owner,
        });
        let argument = Rc::as_ptr(&opened).cast_mut().cast();
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: on the app thread; the name and the output outlive the call; `opened` stays until it has
        // closed the descriptor, and SPDK calls nobody for a closed one.
        let rc = unsafe {
            let on_event = Some(on_event as unsafe extern "C" fn(_, _, _));
            sys::spdk_bdev_open_ext(c_name.as_ptr(), true, on_event, argument, &mut descriptor)
        };
        check(operation, rc).map_err(|error| error.with_detail(format!("bdev {name:?}")))?;
        opened.descriptor.set(descriptor);
        // SAFETY: on the app thread, the descriptor just opened.
        let disk = Arc::new(unsafe { Disk::of(descriptor) });
        opened.disk.replace(Some(Arc::clone(&disk)));
        Ok((opened, disk))
    }

    /// Closes the bdev once nobody uses it.
    pub(super) async fn close(self: Rc<Self>) {
        let disk = self.disk.borrow().clone();
        if let Some(disk) = disk {
            disk.removed.store(true, Ordering::SeqCst);
            while disk.leases.load(Ordering::SeqCst) > 0 {
                sleep(self.spdk, PAUSE).await;
            }
        }
        let descriptor = self.descriptor.replace(std::ptr::null_mut());
        if !descriptor.is_null() {
            // SAFETY: opened by `new` on this thread and not closed before; nobody has a lease, and nobody
            // gets one.
            unsafe { sys::spdk_bdev_close(descriptor) };
        }
    }
}

/// SPDK's word on a bdev that is open.
unsafe extern "C" fn on_event(
    event: sys::spdk_bdev_event_type,
    bdev: *mut sys::spdk_bdev,
    argument: *mut c_void,
) {
    let opened: *const Opened = argument.cast_const().cast();
    // SAFETY: what `new` passed: an `Rc` of which somebody has a share while the descriptor is open.
    let opened = unsafe {
        Rc::increment_strong_count(opened);
        Rc::from_raw(opened)
    };
    let (owner, target) = (opened.owner.0.upgrade(), opened.owner.1);
    match event {
        sys::spdk_bdev_event_type_SPDK_BDEV_EVENT_REMOVE => {
            if let Some(owner) = owner {
                owner.take_if(target, &opened);
            }
            spawn_local(opened.close());
        }
        sys::spdk_bdev_event_type_SPDK_BDEV_EVENT_RESIZE => {
            // SAFETY: on the app thread; the bdev is the one that the event is about.
            let blocks = unsafe { sys::spdk_bdev_get_num_blocks(bdev) };
            if let Some(disk) = &*opened.disk.borrow() {
                disk.blocks.store(blocks, Ordering::Release);
            }
            if let Some(owner) = owner {
                owner.device.changed();
            }
        }
        _ => {}
    }
}
