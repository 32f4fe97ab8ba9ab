//! virtio-blk devices, one bdev each.
//!
//! The app thread opens and closes the bdev. While a client is connected the worker has a channel to the bdev, and
//! releases it before the bdev is closed.

mod io;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use spdk_gate::vhost_user::blk::{self as rules, Config, feature};
use spdk_gate::vhost_user::message::CONFIG_SPACE;
use spdk_sys as sys;

use super::core::{self, Bdev, Device, Notifier, Opened, Owner};
use super::{check_bdev, check_name};
use crate::app_thread::Spdk;
use crate::error::Error;
use crate::log;
use crate::step::spawn_local;

use self::io::BlkIo;

/// Queues offered to a guest, which may use fewer.
pub const MAX_QUEUES: u32 = 128;

/// The most data segments of a request: a chain's, less header, status, and one crossing between regions.
const MAX_SEGMENTS: u32 = 126;

/// The same if SPDK copies data to align it.
const MAX_COPIED_SEGMENTS: u32 = 29;

/// A block device, shared by all threads.
struct Blk {
    bdev: Arc<Bdev>,
    id: [u8; rules::ID],
    features: u64,
    block_size: u32,
    segments: u32,
    segment_size: u32,
    needs_dma: bool,
}

impl Device for Blk {
    type Io = BlkIo;

    fn features(&self) -> u64 {
        self.features
    }

    fn max_queues(&self) -> u16 {
        u16::try_from(MAX_QUEUES).unwrap_or(u16::MAX)
    }

    fn config(&self, space: &mut [u8; CONFIG_SPACE]) {
        let gone = self.bdev.is_removed();
        let config = Config {
            block_size: self.block_size,
            blocks: self.bdev.blocks(),
            segments: self.segments,
            segment_size: self.segment_size,
            queues: self.max_queues(),
            discard: self.features & feature::DISCARD != 0,
            write_zeroes: self.features & feature::WRITE_ZEROES != 0,
        };
        // A disk of size 0 is harmless to a booting guest, whereas an error may abort its boot.
        match gone {
            true => Config::default().write(space),
            false => config.write(space),
        }
    }

    fn needs_dma(&self) -> bool {
        self.needs_dma
    }

    fn io(self: Arc<Self>) -> BlkIo {
        BlkIo::new(self)
    }
}

/// Owner of a device's bdev. App thread.
#[derive(Default)]
struct Owned(RefCell<Option<Notifier>>);

impl Owned {
    fn changed(&self) {
        if let Some(notifier) = &*self.0.borrow() {
            notifier.config_changed();
        }
    }
}

impl Owner for Owned {
    fn retired(&self) {
        self.changed();
    }

    fn resized(&self) {
        self.changed();
    }
}

thread_local! {
    /// Open bdevs by device name. App thread.
    static OPEN: RefCell<HashMap<String, Rc<Opened<Owned>>>> = RefCell::default();
}

/// # Safety
/// Runs on the app thread; the bdev is open.
unsafe fn describe(bdev: *mut sys::spdk_bdev, opened: Arc<Bdev>) -> Blk {
    // SAFETY: by the caller's contract this is the app thread, and the bdev is open, hence valid during this call.
    unsafe {
        let supports = |io_type| sys::spdk_bdev_io_type_supported(bdev, io_type);
        let mut features = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::TOPOLOGY
            | feature::MQ;
        for (io_type, bit) in [
            (
                sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_UNMAP,
                feature::DISCARD,
            ),
            (
                sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_WRITE_ZEROES,
                feature::WRITE_ZEROES,
            ),
            (
                sys::spdk_bdev_io_type_SPDK_BDEV_IO_TYPE_FLUSH,
                feature::FLUSH,
            ),
        ] {
            if supports(io_type) {
                features |= bit;
            }
        }
        let copied = sys::spdk_bdev_get_buf_align(bdev) > 1;
        Blk {
            bdev: opened,
            id: rules::id((*sys::spdk_bdev_get_uuid(bdev)).u.raw),
            features,
            block_size: sys::spdk_bdev_get_block_size(bdev),
            segments: if copied {
                MAX_COPIED_SEGMENTS
            } else {
                MAX_SEGMENTS
            },
            segment_size: if copied { 64 << 10 } else { 128 << 10 },
            needs_dma: sys::opi_bdev_needs_dma(bdev),
        }
    }
}

/// Creates a controller and its socket. The bdev is opened for writing, but without a claim: the caller must keep
/// other users from it.
///
/// ENODEV for an unknown bdev, EBUSY for a bdev that a module claims, EEXIST for a name in use, EINVAL for an
/// invalid name, EPERM without hugepages or for a path that is too long, EADDRNOTAVAIL if the socket cannot be
/// created.
pub async fn create(spdk: Spdk, name: &str, bdev: &str) -> Result<(), Error> {
    const OPERATION: &str = "create vhost-user-blk controller";
    let socket = check_name(spdk, OPERATION, name)?;
    check_bdev(spdk, OPERATION, bdev)?;
    let (opened, blk) = Opened::new(spdk, OPERATION, bdev, Owned::default(), |bdev, opened| {
        // SAFETY: runs on the app thread; the bdev was just opened.
        Arc::new(unsafe { describe(bdev, opened) })
    })?;
    let served = core::serve(spdk, OPERATION, "blk", name, Path::new(&socket), blk).await;
    match served {
        Ok(notifier) => {
            opened.owner().0.replace(Some(notifier));
            let left = OPEN.with_borrow_mut(|open| open.insert(name.to_owned(), opened));
            // A deletion that was cut off has left it.
            if let Some(left) = left {
                spawn_local(left.close());
            }
            Ok(())
        }
        Err(error) => {
            opened.close().await;
            Err(error)
        }
    }
}

/// Deletes a controller and its socket. ENODEV if there is none of that name, EBUSY while a virtual machine is
/// connected. Outstanding requests of a disconnected machine are drained for up to 3 s; after that they complete in
/// the background, and keep the bdev open until they do.
pub async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "delete vhost-user-blk controller";
    let is_open = || OPEN.with_borrow(|open| open.contains_key(name));
    let rest = match core::withdraw(spdk, OPERATION, name).await {
        // An earlier deletion was cut off.
        Err(error) if error.errno.0 == libc::ENODEV && is_open() => None,
        withdrawn => withdrawn?,
    };
    let Some(opened) = OPEN.with_borrow_mut(|open| open.remove(name)) else {
        return Ok(());
    };
    match rest {
        None => opened.close().await,
        Some(rest) => {
            log::note(
                sys::spdk_log_level_SPDK_LOG_WARN,
                format!("requests of the removed device {name:?} are still outstanding"),
            );
            spawn_local(async move {
                rest.ended().await;
                opened.close().await;
            });
        }
    }
    Ok(())
}

/// Returns the own name of the bdev that a device shows; `None` without such a device, and once SPDK is removing the
/// bdev. App thread.
pub fn volume_of(spdk: Spdk, name: &str) -> Option<String> {
    let opened = OPEN.with_borrow(|open| open.get(name).cloned())?;
    opened.volume().filter(|_| core::is_there(spdk, name))
}

/// Closes all bdevs during teardown; no device uses them any more.
pub(super) fn close_all(_: Spdk) {
    for opened in OPEN.take().into_values() {
        spawn_local(opened.close());
    }
}
