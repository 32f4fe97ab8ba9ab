//! virtio-scsi controllers with up to eight targets of one LUN each. Targets can be added and removed while virtual
//! machines are connected (hotplug).

mod attached;
mod disk;
mod io;
mod parts;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use spdk_gate::vhost_user::message::CONFIG_SPACE;
use spdk_gate::vhost_user::scsi::{FIXED_QUEUES, TARGETS, configure, feature};
use spdk_sys as sys;
use tokio::sync::watch;

use self::disk::{Disk, Opened};
use self::io::ScsiIo;
use super::core::{self, Device};
use super::{CHANGE_LIMIT, check_name};
use crate::app_thread::Spdk;
use crate::deadline::within;
use crate::error::Error;
use crate::log;
use crate::step::spawn_local;

/// The most targets of a controller.
pub const MAX_TARGETS: u8 = TARGETS;

/// Queues offered to a guest, including the control and event queues.
const MAX_QUEUES: u16 = 128;

/// The most data segments of a command: a chain's, less header, response, and one crossing between regions.
const MAX_SEGMENTS: u32 = 126;

/// The disks of a controller, by target.
type Disks = [Option<Arc<Disk>>; TARGETS as usize];

/// A SCSI controller, shared by all threads.
struct Scsi {
    /// Changed by the app thread. A worker copies them only if it gets the lock without waiting.
    disks: Mutex<Disks>,
    /// Counts changes of the disks and of their sizes.
    changes: AtomicU32,
    /// Set if the client's memory may be unusable for DMA, since no disk needed it when the memory was mapped.
    ordinary_memory: AtomicBool,
}

impl Scsi {
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn set(&self, target: u8, disk: Option<Arc<Disk>>) {
        if let Some(place) = self.disks.lock().get_mut(usize::from(target)) {
            *place = disk;
        }
        self.changed();
    }
}

impl Device for Scsi {
    type Io = ScsiIo;

    fn features(&self) -> u64 {
        feature::INOUT | feature::HOTPLUG | feature::CHANGE
    }

    fn max_queues(&self) -> u16 {
        MAX_QUEUES
    }

    fn config(&self, space: &mut [u8; CONFIG_SPACE]) {
        configure(space, MAX_QUEUES - FIXED_QUEUES, MAX_SEGMENTS);
    }

    fn needs_dma(&self) -> bool {
        let disks = self.disks.lock();
        let needs = disks.iter().flatten().any(|disk| disk.needs_dma);
        self.ordinary_memory.store(!needs, Ordering::Release);
        needs
    }

    fn io(self: Arc<Self>) -> ScsiIo {
        ScsiIo::new(self)
    }
}

/// A controller, on the app thread.
struct Controller {
    device: Arc<Scsi>,
    opened: RefCell<[Option<Rc<Opened>>; TARGETS as usize]>,
    /// By target: closed when the disk that was removed last has no I/O any more.
    closing: RefCell<HashMap<u8, watch::Receiver<()>>>,
}

impl Controller {
    /// Removes a target's disk, which frees its number.
    fn take(&self, target: u8) -> Option<Rc<Opened>> {
        let taken = self
            .opened
            .borrow_mut()
            .get_mut(usize::from(target))?
            .take();
        if taken.is_some() {
            self.device.set(target, None);
        }
        taken
    }

    /// As [`take`](Self::take), but only if the target's disk is this one.
    fn take_if(&self, target: u8, disk: &Rc<Opened>) {
        let is_it = {
            let opened = self.opened.borrow();
            let found = opened.get(usize::from(target)).and_then(Option::as_ref);
            found.is_some_and(|found| Rc::ptr_eq(found, disk))
        };
        if is_it {
            self.take(target);
        }
    }

    /// Removes all disks, and closes their bdevs in the background.
    fn close(&self) {
        for disk in (0..MAX_TARGETS).filter_map(|target| self.take(target)) {
            spawn_local(disk.close());
        }
    }

    fn is_free(&self, target: u8) -> bool {
        self.opened
            .borrow()
            .get(usize::from(target))
            .is_some_and(Option::is_none)
    }
}

thread_local! {
    /// Controllers by name. App thread.
    static CONTROLLERS: RefCell<HashMap<String, Rc<Controller>>> = RefCell::default();
}

/// Looks up a controller; ENODEV of `operation` if there is none.
fn existing(operation: &'static str, name: &str) -> Result<Rc<Controller>, Error> {
    let found = CONTROLLERS.with_borrow(|controllers| controllers.get(name).cloned());
    found.ok_or_else(|| {
        Error::new(operation, libc::ENODEV)
            .with_detail(format!("there is no SCSI controller {name:?}"))
    })
}

/// Creates a controller without targets, and its socket. EEXIST for a name in use, EINVAL for an invalid name, EPERM
/// without hugepages or for a path that is too long, EADDRNOTAVAIL if the socket cannot be created.
pub async fn create(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "create vhost-user-scsi controller";
    let socket = check_name(spdk, OPERATION, name)?;
    let device = Arc::new(Scsi {
        disks: Mutex::default(),
        changes: AtomicU32::new(0),
        ordinary_memory: AtomicBool::new(false),
    });
    core::serve(
        spdk,
        OPERATION,
        "scsi",
        name,
        Path::new(&socket),
        Arc::clone(&device),
    )
    .await?;
    let controller = Rc::new(Controller {
        device,
        opened: RefCell::default(),
        closing: RefCell::default(),
    });
    let left =
        CONTROLLERS.with_borrow_mut(|controllers| controllers.insert(name.to_owned(), controller));
    if let Some(left) = left {
        // Its deletion was cut off.
        left.close();
    }
    Ok(())
}

/// Deletes a controller with its targets, and its socket. ENODEV if there is none of that name, EBUSY while a
/// virtual machine is connected. Outstanding commands of a disconnected machine keep their bdevs open until they are
/// done.
pub async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "delete vhost-user-scsi controller";
    existing(OPERATION, name)?;
    let rest = match core::withdraw(spdk, OPERATION, name).await {
        // An earlier deletion was cut off.
        Err(error) if error.errno.0 == libc::ENODEV => None,
        withdrawn => withdrawn?,
    };
    let removed = CONTROLLERS.with_borrow_mut(|controllers| controllers.remove(name));
    let Some(controller) = removed else {
        return Ok(());
    };
    let disks: Vec<_> = (0..MAX_TARGETS)
        .filter_map(|target| controller.take(target))
        .collect();
    if let Some(rest) = rest {
        log::note(
            sys::spdk_log_level_SPDK_LOG_WARN,
            format!("requests of the removed device {name:?} are still outstanding"),
        );
        spawn_local(async move {
            rest.ended().await;
            for disk in disks {
                disk.close().await;
            }
        });
        return Ok(());
    }
    for disk in disks {
        disk.close().await;
    }
    Ok(())
}

/// Adds a target whose LUN 0 is the bdev. Returns its number: the one requested, or the lowest free one.
///
/// ENODEV for an unknown controller or bdev, EBUSY for a bdev that a module claims, EEXIST for a number in use,
/// ENOSPC if none is free, EINVAL for a number above the highest.
pub async fn add_target(
    spdk: Spdk,
    name: &str,
    number: Option<u8>,
    bdev: &str,
) -> Result<u8, Error> {
    const OPERATION: &str = "add SCSI target";
    let controller = existing(OPERATION, name)?;
    super::check_bdev(spdk, OPERATION, bdev)?;
    let detail = |errno| {
        Error::new(OPERATION, errno).with_detail(format!(
            "target {number:?} of {name:?}, which has {MAX_TARGETS}"
        ))
    };
    let number = match number {
        Some(MAX_TARGETS..) => return Err(detail(libc::EINVAL)),
        Some(number) if controller.is_free(number) => number,
        Some(_) => return Err(detail(libc::EEXIST)),
        None => (0..MAX_TARGETS)
            .find(|number| controller.is_free(*number))
            .ok_or_else(|| detail(libc::ENOSPC))?,
    };
    let owner = Rc::downgrade(&controller);
    let (opened, disk) = disk::open(spdk, OPERATION, bdev, owner, number)?;
    if let Some(place) = controller.opened.borrow_mut().get_mut(usize::from(number)) {
        *place = Some(opened);
    }
    controller.device.set(number, Some(disk));
    Ok(number)
}

/// Checks whether a target can use this bdev. ENODEV if there is none of that name, EBUSY if a module claims it.
pub fn check_bdev(spdk: Spdk, bdev: &str) -> Result<(), Error> {
    super::check_bdev(spdk, "check LUN", bdev)
}

/// Removes a target once its I/O has drained. ENODEV for an unknown controller, ENOENT for an unknown target,
/// ETIMEDOUT if its I/O does not complete in time; the removal then continues in the background, and a repeated one waits
/// for it again.
pub async fn remove_target(spdk: Spdk, name: &str, number: u8) -> Result<(), Error> {
    const OPERATION: &str = "remove SCSI target";
    let controller = existing(OPERATION, name)?;
    if let Some(disk) = controller.take(number) {
        let (sender, closed) = watch::channel(());
        controller.closing.borrow_mut().insert(number, closed);
        spawn_local(async move {
            disk.close().await;
            drop(sender);
        });
    }
    let closing = controller.closing.borrow().get(&number).cloned();
    let Some(mut closing) = closing else {
        return Err(Error::new(OPERATION, libc::ENOENT)
            .with_detail(format!("{name:?} has no target {number}")));
    };
    // Nothing is sent: the sender's drop ends the wait.
    match within(spdk, CHANGE_LIMIT, closing.changed()).await {
        Some(_) => {
            controller.closing.borrow_mut().remove(&number);
            Ok(())
        }
        None => {
            Err(Error::unfinished(OPERATION).with_detail(format!("target {number} of {name:?}")))
        }
    }
}

/// Closes all bdevs during teardown; no device uses them any more.
pub(super) fn close_all(_: Spdk) {
    for controller in CONTROLLERS.take().into_values() {
        controller.close();
    }
}
