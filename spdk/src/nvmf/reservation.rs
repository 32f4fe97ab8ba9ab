//! Reservations of namespaces, which the program persists in place of SPDK's files.
//!
//! ```text
//! host's command ─► SPDK ─► save ─► channel, bell ─► Changes::next (made durable elsewhere)
//!        ▲                                                 │
//!        └──── answer ◄── wait ends ◄── saved ◄────────────┘
//! ```
//!
//! The channel is bounded, and the app thread never waits for it. The host's command waits, for [`LIMIT`] at most.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use spdk_sys as sys;
use tokio::io::unix::AsyncFd;

use spdk_control::bell::Bell;
use spdk_control::event_fd::EventFd;

use crate::app_thread::Spdk;
use crate::cstr::{fill, read};
use crate::error::Error;
use crate::log;
use crate::mailbox::Handle;
use crate::step::spawn_local;
use crate::timer::sleep;

/// Must match `OPI_RESERVATION_KEPT`: the prefix of names that SPDK is given in place of file names.
pub(crate) const KEPT: &str = "opi:";

/// Maximum number of registrants per namespace.
const MOST: usize = sys::SPDK_NVMF_MAX_NUM_REGISTRANTS as usize;

/// Reservation types that all registrants hold together.
const OF_ALL: [u8; 2] = [5, 6];

/// The highest reservation type.
const TYPES: u8 = 6;

/// Capacity of the channel, in changes. Commands fail if it is full (backpressure).
const CAPACITY: usize = 1024;

/// Slots that stay free: in a full channel a sender spins while its reader is descheduled.
const SPARE: usize = 16;

/// Timeout of a host's command for its reservation to become durable. Shorter than the timeout of a pause, which
/// drains commands in flight.
const LIMIT: Duration = Duration::from_secs(3);

/// How often waiting commands are checked for that timeout.
const LOOK: Duration = Duration::from_millis(250);

/// A registered host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registrant {
    /// Host identifier, as a UUID.
    pub host: String,
    /// Reservation key.
    pub key: u64,
}

/// The registrants and the reservation of a namespace that persist through power loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// UUID of the volume.
    pub bdev: String,
    /// Reservation type of the NVMe specification; 0 if none is held.
    pub kind: u8,
    /// Key of the holder; 0 if no reservation is held.
    pub key: u64,
    /// Host identifier of the holder; empty if there is none, or if all registrants hold the reservation.
    pub holder: String,
    /// The registrants, in the order of registration.
    pub registrants: Vec<Registrant>,
}

impl Reservation {
    /// Converts SPDK's state; `None` if nothing persists.
    fn of(info: &sys::spdk_nvmf_reservation_info) -> Option<Self> {
        let count = usize::from(info.num_regs).min(MOST);
        if info.ptpl_activated == 0 || count == 0 {
            return None;
        }
        let registrants = info.registrants.iter().take(count);
        Some(Self {
            bdev: read(&info.bdev_uuid),
            kind: info.rtype,
            key: info.crkey,
            holder: read(&info.holder_uuid),
            registrants: registrants
                .map(|one| Registrant {
                    host: read(&one.host_uuid),
                    key: one.rkey,
                })
                .collect(),
        })
    }

    /// Fills in what SPDK restores. SPDK trusts these values, and refuses the namespace or aborts the process if
    /// they are inconsistent, so they are validated here.
    ///
    /// # Errors
    /// EINVAL that names the inconsistency.
    fn fill(&self, info: &mut sys::spdk_nvmf_reservation_info) -> Result<(), Error> {
        let wrong =
            |what: String| Err(Error::new("restore reservation", libc::EINVAL).with_detail(what));
        let count = self.registrants.len();
        let Some(first) = self.registrants.first().filter(|_| count <= MOST) else {
            return wrong(format!("{count} registrants: 1 to {MOST} would be right"));
        };
        let holder = match self.kind {
            0 => None,
            // SPDK keeps the key of the first registrant, who may have left since.
            kind if OF_ALL.contains(&kind) => Some(first),
            1..=TYPES => {
                let holder = |one: &&Registrant| one.host == self.holder && one.key == self.key;
                let Some(holder) = self.registrants.iter().find(holder) else {
                    return wrong(format!("holder {:?} is no registrant", self.holder));
                };
                Some(holder)
            }
            kind => {
                return wrong(format!(
                    "reservation type {kind}: 0 to {TYPES} would be right"
                ));
            }
        };
        if holder.is_some_and(|holder| holder.key == 0) {
            return wrong("the holder's key is 0".to_owned());
        }
        info.ptpl_activated = 1;
        info.rtype = self.kind;
        info.crkey = holder.map_or(0, |holder| holder.key);
        fill(
            "holder",
            &mut info.holder_uuid,
            holder.map_or("", |holder| &holder.host),
        )?;
        fill("bdev", &mut info.bdev_uuid, &self.bdev)?;
        for (to, from) in info.registrants.iter_mut().zip(&self.registrants) {
            to.rkey = from.key;
            fill("host", &mut to.host_uuid, &from.host)?;
        }
        info.num_regs = u8::try_from(count).unwrap_or(u8::MAX);
        Ok(())
    }
}

/// The name under which a namespace's reservations are persisted, and their durable state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The name.
    pub name: String,
    /// The durable state.
    pub reservation: Option<Reservation>,
}

/// A change that must be made durable.
#[derive(Debug)]
pub struct Changed {
    /// The name in [`Kept`].
    pub name: String,
    /// The new state.
    pub reservation: Option<Reservation>,
    /// Matches a change with its [`saved`].
    generation: u64,
}

/// The stream of changes.
pub struct Changes {
    receiver: Receiver<Changed>,
    bell: Arc<Bell<EventFd>>,
    ready: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Waits for the next changes, in order. [`saved`] must be called for each.
    ///
    /// # Errors
    /// Errors of the event loop.
    pub async fn next(&mut self) -> std::io::Result<Vec<Changed>> {
        loop {
            let mut ready = self.ready.readable().await?;
            // Before `hush`: a signal after it makes a new edge, which epoll reports.
            ready.clear_ready();
            self.bell.hush();
            let changed: Vec<Changed> = self.receiver.try_iter().collect();
            if !changed.is_empty() {
                return Ok(changed);
            }
        }
    }
}

/// SPDK's callback for a change that is or is not durable.
struct Waiter {
    saved: unsafe extern "C" fn(*mut c_void, c_int),
    argument: *mut c_void,
    until: Instant,
}

impl Waiter {
    /// Must not be called while `TABLE` is borrowed: SPDK may run the next command from within.
    fn end(self, status: c_int) {
        // SAFETY: callback and argument that SPDK passed to `wait`, on the same thread; `self` is consumed, so it
        // is called once.
        unsafe { (self.saved)(self.argument, status) };
    }
}

/// The state of a namespace.
#[derive(Default)]
struct Slot {
    durable: Option<Reservation>,
    /// Generation of the last change.
    generation: u64,
    /// The durable state differs from the namespace's.
    is_unsaved: bool,
    /// The last change is in progress.
    is_under_way: bool,
    waiter: Option<Waiter>,
}

#[derive(Default)]
struct Table {
    slots: HashMap<String, Slot>,
    out: Option<(Spdk, Sender<Changed>, Arc<Bell<EventFd>>)>,
    generation: u64,
    /// The task of [`watch_over_waiters`] is running.
    is_watched: bool,
}

thread_local! {
    /// Owned by the app thread, on which all subsystems are managed.
    static TABLE: RefCell<Table> = RefCell::default();
}

/// Starts to persist reservations. Must be called before the first namespace is added.
///
/// # Errors
/// There are no file descriptors left, or SPDK is not running.
pub async fn changes(handle: &Handle) -> Result<Changes, Error> {
    const OPERATION: &str = "keep reservations";
    let (sender, receiver) = crossbeam_channel::bounded(CAPACITY);
    let failed = |errno| Error::new(OPERATION, errno);
    let event = EventFd::new().map_err(|_| failed(libc::EMFILE))?;
    let descriptor = event.descriptor().map_err(|_| failed(libc::EMFILE))?;
    let bell = Arc::new(Bell::new(event, false));
    // SAFETY: I/O safety of AsyncFd::register: an OwnedFd refers to the same open descriptor until it is dropped,
    // and it is moved in, so nobody can close or replace it.
    let ready = unsafe { AsyncFd::register(descriptor) };
    let ready = ready.map_err(|_| failed(libc::EMFILE))?;
    let ringing = Arc::clone(&bell);
    let opened = handle.call(async move |spdk| {
        TABLE.with_borrow_mut(|table| table.out = Some((spdk, sender, ringing)));
    });
    opened.await.map_err(|_| failed(libc::ESHUTDOWN))?;
    Ok(Changes {
        receiver,
        bell,
        ready,
    })
}

/// Reports the outcome of a change, and completes the command that waits for it. App thread.
pub fn saved(_: Spdk, changed: &Changed, is_durable: bool) {
    let waiter = TABLE.with_borrow_mut(|table| {
        let slot = table.slots.get_mut(&changed.name)?;
        if slot.generation != changed.generation {
            return None;
        }
        slot.is_under_way = false;
        if is_durable {
            slot.is_unsaved = false;
            slot.durable.clone_from(&changed.reservation);
        }
        slot.waiter.take()
    });
    if let Some(waiter) = waiter {
        waiter.end(if is_durable { 0 } else { -libc::EIO });
    }
}

/// Completes all waiting commands with an error, and refuses changes from now on. Called before SPDK stops, whose
/// teardown waits for hosts' commands.
pub(crate) async fn stop(_: Spdk) {
    let waiters: Vec<Waiter> = TABLE.with_borrow_mut(|table| {
        table.out = None;
        let slots = table.slots.values_mut();
        slots.filter_map(|slot| slot.waiter.take()).collect()
    });
    for waiter in waiters {
        waiter.end(-libc::ESHUTDOWN);
    }
}

/// Registers a namespace; returns the name that SPDK is given in place of a file name.
pub(super) fn keep(_: Spdk, kept: Kept) -> String {
    let slot = Slot {
        durable: kept.reservation,
        ..Slot::default()
    };
    let name = format!("{KEPT}{}", kept.name);
    TABLE.with_borrow_mut(|table| table.slots.insert(kept.name, slot));
    name
}

/// Forgets a removed namespace of this name. App thread.
pub fn forget(_: Spdk, name: &str) {
    TABLE.with_borrow_mut(|table| table.slots.remove(name));
}

/// Restores the reservations of a volume; nothing if they belong to another volume or are inconsistent.
pub(crate) fn load(name: &str, bdev: &str, info: &mut sys::spdk_nvmf_reservation_info) {
    TABLE.with_borrow_mut(|table| {
        let Some(slot) = table.slots.get_mut(name) else {
            return;
        };
        let Some(reservation) = &slot.durable else {
            return;
        };
        let mut filled = *info;
        let why = match reservation.fill(&mut filled) {
            Ok(()) if reservation.bdev == bdev => {
                *info = filled;
                return;
            }
            Ok(()) => format!("they are of the volume {}, not of {bdev}", reservation.bdev),
            Err(error) => error.to_string(),
        };
        log::note(
            sys::spdk_log_level_SPDK_LOG_WARN,
            format!("{name} does not get back its reservations: {why}"),
        );
        // The durable state remains until the next command replaces it.
        slot.is_unsaved = true;
    });
}

/// Starts to make SPDK's current state durable. Returns 0 or a negative errno.
pub(crate) fn save(name: &str, info: &sys::spdk_nvmf_reservation_info) -> c_int {
    let reservation = Reservation::of(info);
    TABLE.with_borrow_mut(|table| {
        let Some(slot) = table.slots.get_mut(name) else {
            return -libc::ENODEV;
        };
        if !slot.is_unsaved && slot.durable == reservation {
            return 0;
        }
        slot.is_unsaved = true;
        let Some((_, sender, bell)) = &table.out else {
            return -libc::ESHUTDOWN;
        };
        if sender.len() >= CAPACITY - SPARE {
            return -libc::EBUSY;
        }
        table.generation = table.generation.wrapping_add(1);
        let changed = Changed {
            name: name.to_owned(),
            reservation,
            generation: table.generation,
        };
        if sender.try_send(changed).is_err() {
            return -libc::EBUSY;
        }
        slot.generation = table.generation;
        slot.is_under_way = true;
        bell.ring();
        0
    })
}

/// Returns whether the durable state differs from the namespace's.
pub(crate) fn is_unsaved(name: &str) -> bool {
    TABLE.with_borrow(|table| table.slots.get(name).is_some_and(|slot| slot.is_unsaved))
}

/// Has `saved` called with the outcome of the change in progress; `false` if there is none.
pub(crate) fn wait(
    name: &str,
    saved: unsafe extern "C" fn(*mut c_void, c_int),
    argument: *mut c_void,
) -> bool {
    TABLE.with_borrow_mut(|table| {
        let Some(slot) = table.slots.get_mut(name) else {
            return false;
        };
        if table.out.is_none() || !slot.is_under_way {
            return false;
        }
        slot.waiter = Some(Waiter {
            saved,
            argument,
            until: Instant::now() + LIMIT,
        });
        true
    }) && {
        watch_over_waiters();
        true
    }
}

/// Starts the task that fails waiting commands after their timeout. One task for all; ends when none waits.
fn watch_over_waiters() {
    let spdk = TABLE.with_borrow_mut(|table| {
        let (spdk, ..) = table.out.as_ref()?;
        let begins = !std::mem::replace(&mut table.is_watched, true);
        begins.then_some(*spdk)
    });
    let Some(spdk) = spdk else { return };
    spawn_local(async move {
        loop {
            sleep(spdk, LOOK).await;
            let now = Instant::now();
            let late: Vec<Waiter> = TABLE.with_borrow_mut(|table| {
                let slots = table.slots.values_mut();
                let late = |slot: &mut Slot| slot.waiter.take_if(|waiter| waiter.until <= now);
                let late = slots.filter_map(late).collect();
                table.is_watched = table.slots.values().any(|slot| slot.waiter.is_some());
                late
            });
            for waiter in late {
                waiter.end(-libc::ETIMEDOUT);
            }
            if !TABLE.with_borrow(|table| table.is_watched) {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests;
