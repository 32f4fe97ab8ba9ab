//! Channels to the disks of a controller, on the worker.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use spdk_sys as sys;

use super::disk::Disk;

/// A disk that this half has a channel to. The last share gives it back: requests have one each.
pub(super) struct Attached {
    pub(super) disk: Arc<Disk>,
    pub(super) descriptor: *mut sys::spdk_bdev_desc,
    pub(super) channel: *mut sys::spdk_io_channel,
    /// Of the size that the driver was told.
    pub(super) blocks: Cell<u64>,
    /// The next command is told that the size has changed.
    pub(super) attention: Cell<bool>,
}

impl Attached {
    pub(super) fn new(disk: &Arc<Disk>) -> Option<Rc<Self>> {
        let descriptor = disk.bdev.lease()?;
        // SAFETY: on an SPDK thread; the lease keeps the descriptor open.
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
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: taken by `new` on this thread, given back once; no request is left, as each has a share.
        unsafe { sys::spdk_put_io_channel(self.channel) };
        self.disk.bdev.release();
    }
}

/// What is at a target number.
#[derive(Default, Clone)]
pub(super) enum Target {
    /// Nothing, ever.
    #[default]
    Empty,
    /// A disk.
    Present(Rc<Attached>),
    /// A disk was, and the driver may still ask for it.
    Gone,
}
