//! Channels to the disks of a controller, on the worker.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use spdk_sys as sys;

use super::disk::Disk;

/// A disk with a channel from this worker. Reference-counted: the device and each request hold a share, and the last
/// one releases the channel.
pub(super) struct Attached {
    pub(super) disk: Arc<Disk>,
    pub(super) descriptor: *mut sys::spdk_bdev_desc,
    pub(super) channel: *mut sys::spdk_io_channel,
    /// The size last reported to the driver, in blocks.
    pub(super) blocks: Cell<u64>,
    /// The next command reports the changed size (unit attention).
    pub(super) attention: Cell<bool>,
}

impl Attached {
    pub(super) fn new(disk: &Arc<Disk>) -> Option<Rc<Self>> {
        let descriptor = disk.bdev.lease()?;
        // SAFETY: runs on an SPDK thread; the lease keeps the descriptor open.
        let channel = unsafe { sys::spdk_bdev_get_io_channel(descriptor) };
        if channel.is_null() {
            disk.bdev.release();
            return None;
        }
        Some(Rc::new(Self {
            disk: Arc::clone(disk),
            descriptor,
            channel,
            blocks: Cell::new(disk.bdev.blocks()),
            attention: Cell::new(false),
        }))
    }

    /// Resets the disk, which aborts its outstanding commands. If SPDK is out of memory for the reset, they complete
    /// on their own.
    pub(super) fn reset(&self) {
        let argument = std::ptr::null_mut();
        // SAFETY: runs on the channel's thread; the lease keeps the descriptor open.
        unsafe { sys::spdk_bdev_reset(self.descriptor, self.channel, Some(on_reset), argument) };
    }
}

unsafe extern "C" fn on_reset(bdev_io: *mut sys::spdk_bdev_io, _: bool, _: *mut c_void) {
    // SAFETY: an I/O that the callback owns and must free.
    unsafe { sys::spdk_bdev_free_io(bdev_io) };
}

/// Removed disks, each of them alive while it has outstanding commands.
#[derive(Default)]
pub(super) struct Removed(RefCell<Vec<Weak<Attached>>>);

impl Removed {
    pub(super) fn note(&self, attached: &Rc<Attached>) {
        let mut removed = self.0.borrow_mut();
        removed.retain(|attached| attached.strong_count() > 0);
        removed.push(Rc::downgrade(attached));
    }

    /// Resets the disks that still have outstanding commands.
    pub(super) fn reset(&self) {
        let left: Vec<_> = self.0.borrow().iter().filter_map(Weak::upgrade).collect();
        left.iter().for_each(|attached| attached.reset());
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: taken by `new` on this thread and released once; each request holds a share, so none is
        // outstanding.
        unsafe { sys::spdk_put_io_channel(self.channel) };
        self.disk.bdev.release();
    }
}

/// The state of a target number.
#[derive(Default, Clone)]
pub(super) enum Target {
    /// There was never a disk.
    #[default]
    Empty,
    /// A disk.
    Present(Rc<Attached>),
    /// A disk was removed; the driver may still address it.
    Gone,
}
