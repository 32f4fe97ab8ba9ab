//! The bdev of a SCSI target. The app thread opens and closes it; workers hold a lease while they use it.

use std::rc::{Rc, Weak};
use std::sync::Arc;

use spdk_gate::vhost_user::scsi::{Geometry, Identity};
use spdk_sys as sys;

use super::Controller;
use crate::app_thread::Spdk;
use crate::cstr::string;
use crate::error::Error;
use crate::vhost::core::{self, Bdev, Owner};

/// A bdev as a disk, shared by all threads.
pub(super) struct Disk {
    pub(super) bdev: Arc<Bdev>,
    geometry: Geometry,
    pub(super) identity: Identity,
    pub(super) flushes: bool,
    pub(super) needs_dma: bool,
}

impl Disk {
    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.bdev.blocks(),
            ..self.geometry
        }
    }

    /// # Safety
    /// Runs on the app thread; the bdev is open.
    unsafe fn of(bdev: *mut sys::spdk_bdev, opened: Arc<Bdev>) -> Self {
        use sys::{
            spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_FLUSH as FLUSH,
            spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_UNMAP as UNMAP,
            spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_WRITE_ZEROES as ZEROES,
        };
        // SAFETY: by the caller's contract this is the app thread, and the bdev is open, hence valid during this
        // call.
        unsafe {
            let supports = |io_type| sys::spdk_bdev_io_type_supported(bdev, io_type);
            let mut product = [b' '; 16];
            let name = string(sys::spdk_bdev_get_product_name(bdev));
            for (place, letter) in product.iter_mut().zip(name.bytes()) {
                *place = letter;
            }
            let blocks = opened.blocks();
            Self {
                bdev: opened,
                geometry: Geometry {
                    block_size: sys::spdk_bdev_get_block_size(bdev),
                    physical_block_size: sys::spdk_bdev_get_physical_block_size(bdev),
                    blocks,
                    unmap: supports(UNMAP),
                    zeroes: supports(ZEROES),
                },
                identity: Identity {
                    uuid: (*sys::spdk_bdev_get_uuid(bdev)).u.raw,
                    product,
                },
                flushes: supports(FLUSH),
                needs_dma: sys::opi_bdev_needs_dma(bdev),
            }
        }
    }
}

/// An open disk. App thread.
pub(super) type Opened = core::Opened<Owned>;

/// The target that a disk belongs to. App thread.
pub(super) struct Owned {
    controller: Weak<Controller>,
    target: u8,
}

impl Owner for Owned {
    fn removed(opened: &Rc<Opened>) {
        let Owned { controller, target } = opened.owner();
        if let Some(controller) = controller.upgrade() {
            controller.take_if(*target, opened);
        }
    }

    fn resized(&self) {
        if let Some(controller) = self.controller.upgrade() {
            controller.device.changed();
        }
    }
}

/// Opens the disk of a controller's target.
pub(super) fn open(
    spdk: Spdk,
    operation: &'static str,
    name: &str,
    controller: Weak<Controller>,
    target: u8,
) -> Result<(Rc<Opened>, Arc<Disk>), Error> {
    let owner = Owned { controller, target };
    Opened::new(spdk, operation, name, owner, |bdev, opened| {
        // SAFETY: runs on the app thread; the bdev was just opened.
        Arc::new(unsafe { Disk::of(bdev, opened) })
    })
}
