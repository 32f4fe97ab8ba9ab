//! virtio-blk devices, one bdev each.
//!
//! The app thread opens and closes the bdev; the worker has a channel to it while a client is connected,
//! and gives that back before the bdev is closed.

mod io;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use spdk_gate::vhost_user::blk::{self as rules, Config, feature};
use spdk_gate::vhost_user::message::CONFIG_SPACE;
use spdk_sys as sys;

use super::core::{self, Device, Notifier};
use super::{check_bdev, check_name};
use crate::cstr::cstr;
use crate::error::{Error, check};
use crate::executor::spawn_local;
use crate::runtime::Spdk;
use crate::timer::sleep;

use self::io::BlkIo;

/// Queues that a machine may use, and chooses.
pub const MAX_QUEUES: u32 = 128;

/// Segments of data in a request: a chain's, less header, status and one region's end.
const MAX_SEGMENTS: u32 = 126;

/// The same where SPDK copies data to align it.
const MAX_COPIED_SEGMENTS: u32 = 29;

/// Between two looks at whether the worker has given the bdev back.
const PAUSE: Duration = Duration::from_millis(1);

/// A block device, for all threads.
struct Blk {
    /// Open until nobody has a lease.
    descriptor: *mut sys::spdk_bdev_desc,
    id: [u8; rules::ID],
    features: u64,
    block_size: u32,
    blocks: AtomicU64,
    segments: u32,
    segment_size: u32,
    needs_dma: bool,
    /// The bdev goes: nobody takes a lease any more.
    removed: AtomicBool,
    /// Halves on workers that may use the descriptor.
    leases: AtomicU32,
}

// SAFETY: the descriptor is used by the app thread, and by workers that have a lease; the rest is plain or
// atomic.
unsafe impl Send for Blk {}
// SAFETY: as above.
unsafe impl Sync for Blk {}

impl Device for Blk {
    type Io = BlkIo;

    fn features(&self) -> u64 {
        self.features
    }

    fn max_queues(&self) -> u16 {
        u16::try_from(MAX_QUEUES).unwrap_or(u16::MAX)
    }

    fn config(&self, space: &mut [u8; CONFIG_SPACE]) {
        let gone = self.removed.load(Ordering::Acquire);
        let config = Config {
            block_size: self.block_size,
            blocks: self.blocks.load(Ordering::Acquire),
            segments: self.segments,
            segment_size: self.segment_size,
            queues: self.max_queues(),
            discard: self.features & feature::DISCARD != 0,
            write_zeroes: self.features & feature::WRITE_ZEROES != 0,
        };
        // A disk of size 0 does no harm in a machine that starts, an error might end it.
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

impl Blk {
    /// Takes a lease on the descriptor, unless the bdev goes.
    fn lease(&self) -> Option<*mut sys::spdk_bdev_desc> {
        self.leases.fetch_add(1, Ordering::SeqCst);
        if self.removed.load(Ordering::SeqCst) {
            self.release();
            return None;
        }
        Some(self.descriptor)
    }

    fn release(&self) {
        self.leases.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A bdev that is open for a device. On the app thread.
struct Opened {
    spdk: Spdk,
    /// Null once it has been closed.
    descriptor: Cell<*mut sys::spdk_bdev_desc>,
    blk: RefCell<Option<Arc<Blk>>>,
    notifier: RefCell<Option<Notifier>>,
}

thread_local! {
    /// Of the app thread: what is open, by the devices' names.
    static OPEN: RefCell<HashMap<String, Rc<Opened>>> = RefCell::default();
}

impl Opened {
    fn new(spdk: Spdk, operation: &'static str, name: &str) -> Result<Rc<Self>, Error> {
        let c_name = cstr("bdev name", name)?;
        let opened = Rc::new(Self {
            spdk,
            descriptor: Cell::new(std::ptr::null_mut()),
            blk: RefCell::new(None),
            notifier: RefCell::new(None),
        });
        let argument = Rc::as_ptr(&opened).cast_mut().cast();
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: on the app thread; the name and the output outlive the call; `opened` stays until it has
        // closed the descriptor, and SPDK calls nobody for a closed one.
        let rc = unsafe {
            sys::spdk_bdev_open_ext(
                c_name.as_ptr(),
                true,
                Some(on_event),
                argument,
                &mut descriptor,
            )
        };
        check(operation, rc).map_err(|error| error.with_detail(format!("bdev {name:?}")))?;
        opened.descriptor.set(descriptor);
        // SAFETY: on the app thread, the descriptor just opened.
        let blk = unsafe { describe(descriptor) };
        opened.blk.replace(Some(Arc::new(blk)));
        Ok(opened)
    }

    fn blk(&self) -> Option<Arc<Blk>> {
        self.blk.borrow().clone()
    }

    /// Has nobody begin to use the bdev any more.
    fn retire(&self) {
        if let Some(blk) = &*self.blk.borrow() {
            blk.removed.store(true, Ordering::SeqCst);
        }
        if let Some(notifier) = &*self.notifier.borrow() {
            notifier.config_changed();
        }
    }

    fn is_leased(&self) -> bool {
        let blk = self.blk.borrow();
        blk.as_ref()
            .is_some_and(|blk| blk.leases.load(Ordering::SeqCst) > 0)
    }

    /// Closes the bdev once nobody uses it.
    async fn close(self: Rc<Self>) {
        self.retire();
        while self.is_leased() {
            sleep(self.spdk, PAUSE).await;
        }
        let descriptor = self.descriptor.replace(std::ptr::null_mut());
        if !descriptor.is_null() {
            // SAFETY: opened by `new` on this thread and not closed before; nobody has a lease, and nobody
            // gets one.
            unsafe { sys::spdk_bdev_close(descriptor) };
        }
    }
}

/// # Safety
/// On the app thread; the descriptor is open.
unsafe fn describe(descriptor: *mut sys::spdk_bdev_desc) -> Blk {
    // SAFETY: the caller's contract: the bdev is there as long as the descriptor is open.
    unsafe {
        let bdev = sys::spdk_bdev_desc_get_bdev(descriptor);
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
            descriptor,
            id: rules::id((*sys::spdk_bdev_get_uuid(bdev)).u.raw),
            features,
            block_size: sys::spdk_bdev_get_block_size(bdev),
            blocks: AtomicU64::new(sys::spdk_bdev_get_num_blocks(bdev)),
            segments: if copied {
                MAX_COPIED_SEGMENTS
            } else {
                MAX_SEGMENTS
            },
            segment_size: if copied { 64 << 10 } else { 128 << 10 },
            needs_dma: sys::opi_bdev_needs_dma(bdev),
            removed: AtomicBool::new(false),
            leases: AtomicU32::new(0),
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
    match event {
        sys::spdk_bdev_event_type_SPDK_BDEV_EVENT_REMOVE => spawn_local(opened.close()),
        sys::spdk_bdev_event_type_SPDK_BDEV_EVENT_RESIZE => {
            // SAFETY: on the app thread; the bdev is the one that the event is about.
            let blocks = unsafe { sys::spdk_bdev_get_num_blocks(bdev) };
            if let Some(blk) = &*opened.blk.borrow() {
                blk.blocks.store(blocks, Ordering::Release);
            }
            if let Some(notifier) = &*opened.notifier.borrow() {
                notifier.config_changed();
            }
        }
        _ => {}
    }
}

/// Makes a controller and its socket. It takes the bdev for writing, yet SPDK does
/// not keep others from it: whoever calls does.
///
/// ENODEV for an unknown bdev, EBUSY for one that a module claims, EEXIST for a name
/// in use, EINVAL for one that cannot be, EPERM without hugepages or for a path that
/// is too long, EADDRNOTAVAIL if the socket cannot be made.
pub async fn create(spdk: Spdk, name: &str, bdev: &str) -> Result<(), Error> {
    const OPERATION: &str = "create vhost-user-blk controller";
    let socket = check_name(spdk, OPERATION, name)?;
    check_bdev(spdk, OPERATION, bdev)?;
    let opened = Opened::new(spdk, OPERATION, bdev)?;
    let Some(blk) = opened.blk() else {
        return Err(Error::new(OPERATION, libc::ENODEV));
    };
    let served = core::serve(spdk, OPERATION, "blk", name, Path::new(&socket), blk).await;
    match served {
        Ok(notifier) => {
            opened.notifier.replace(Some(notifier));
            OPEN.with_borrow_mut(|open| open.insert(name.to_owned(), opened));
            Ok(())
        }
        Err(error) => {
            opened.close().await;
            Err(error)
        }
    }
}

/// Removes a controller and its socket. ENODEV if there is none of that name, EBUSY
/// while a virtual machine is connected. Requests that a machine left behind are waited
/// for 3 s; what is not done then ends by itself, and keeps the bdev until it does.
pub async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "delete vhost-user-blk controller";
    let rest = core::withdraw(spdk, OPERATION, name).await?;
    let Some(opened) = OPEN.with_borrow_mut(|open| open.remove(name)) else {
        return Ok(());
    };
    match rest {
        None => opened.close().await,
        Some(rest) => {
            tracing::warn!(
                device = name,
                "requests of a removed device are still outstanding"
            );
            spawn_local(async move {
                // Ready when its control thread has ended.
                let _ = rest.await;
                opened.close().await;
            });
        }
    }
    Ok(())
}

/// Closes all bdevs: no device is left. The process stops.
pub(super) fn close_all(_: Spdk) {
    for opened in OPEN.take().into_values() {
        spawn_local(opened.close());
    }
}
