//! Namespaces: bdevs that hosts see through a subsystem. When its bdev is removed, SPDK removes the namespace.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::future::ready;
use std::rc::Rc;
use std::time::Duration;

use spdk_sys as sys;

use super::pause::paused;
use super::reservation::{self, Kept};
use super::{Subsystem, find, view};
use crate::app_thread::Spdk;
use crate::bdev::{self, Presence, Watch, qos};
use crate::cstr::{cstr, string};
use crate::error::Error;
use crate::hooks::KEEPS_RESERVATIONS;
use crate::log;
use crate::step::spawn_local;
use crate::timer::sleep;

/// How to add a namespace.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Name that its [mask](fn@mask) is found by; empty for none.
    pub name: String,
    /// Whether it must not be added before its mask is set.
    pub masked: bool,
    /// Name of the bdev. The subsystem claims it exclusively.
    pub bdev: String,
    /// Namespace ID; 0 selects the lowest free one.
    pub nsid: u32,
    /// `None` uses the bdev's UUID.
    pub uuid: Option<[u8; 16]>,
    /// `None` uses the bdev's UUID.
    pub nguid: Option<[u8; 16]>,
    /// `None` leaves it unset.
    pub eui64: Option<[u8; 8]>,
    /// Where its reservations are persisted, if they are to persist through power loss. Needs an SPDK with our
    /// changes: see [`KEEPS_RESERVATIONS`](crate::hooks::KEEPS_RESERVATIONS).
    pub kept: Option<Kept>,
}

/// An added namespace.
#[derive(Debug, Clone)]
pub struct Added {
    /// Namespace ID, from 1.
    pub nsid: u32,
    /// Whether the bdev, and with it the namespace, still exists.
    pub bdev: Presence,
    /// Metadata bytes per block of the bdev.
    pub metadata_size: u32,
}

thread_local! {
    /// Watches on the bdevs of namespaces added here, by NQN and namespace ID.
    static WATCHES: RefCell<HashMap<(String, u32), Watch>> = RefCell::default();
}

/// A namespace of a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Namespace ID, from 1.
    pub nsid: u32,
    /// Name of the bdev.
    pub bdev: String,
}

/// Adds a namespace. Connected hosts that may see it are notified.
///
/// ENODEV for an unknown subsystem or bdev, EBUSY for a claimed bdev, EEXIST for a namespace ID in use or an
/// identifier (including one taken from the bdev) of another namespace in the subsystem, ERANGE for an ID above the
/// subsystem's highest, ENOSPC if no ID is free, EBUSY if its mask is to be set first.
pub async fn add(spdk: Spdk, nqn: &str, options: &Options) -> Result<Added, Error> {
    const OPERATION: &str = "add namespace";
    let options = options.clone();
    let c_bdev = cstr("bdev name", &options.bdev)?;
    let added = Rc::new(Cell::new(0));
    let result = paused(spdk, OPERATION, nqn, 0, {
        let (added, nqn) = (added.clone(), nqn.to_owned());
        move |subsystem| {
            let add = || {
                check_bdev(spdk, OPERATION, &options.bdev)?;
                check_nsid(subsystem, OPERATION, options.nsid)?;
                let about = bdev::lookup(spdk, &options.bdev)?;
                let (uuid, metadata_size) =
                    about.map_or_else(Default::default, |info| (info.uuid, info.metadata_size));
                check_identifiers(subsystem, OPERATION, &options, uuid)?;
                if options.masked && !view::has_mask(&nqn, &options.name) {
                    return Err(Error::new(OPERATION, libc::EBUSY)
                        .with_detail("its mask, the hosts that may see it, is not set yet"));
                }
                let hidden = view::is_listed(&nqn, &options.name);
                let kept = options.kept.clone().filter(|_| KEEPS_RESERVATIONS);
                let kept = kept.map(|kept| cstr("name", &reservation::keep(spdk, kept)));
                let kept = kept.transpose()?;
                // SAFETY: runs on the app thread, with the subsystem paused; the arrays and the strings outlive the
                // call.
                let nsid = unsafe {
                    sys::opi_nvmf_add_ns(
                        subsystem.as_ptr(),
                        c_bdev.as_ptr(),
                        options.nsid,
                        options.uuid.unwrap_or_default().as_ptr(),
                        options.nguid.unwrap_or_default().as_ptr(),
                        options.eui64.unwrap_or_default().as_ptr(),
                        kept.as_ref().map_or(std::ptr::null(), |kept| kept.as_ptr()),
                        hidden,
                    )
                };
                if nsid == 0 {
                    return Err(Error::new(OPERATION, libc::EIO).with_detail(format!(
                        "SPDK refuses bdev {:?}; its log says why",
                        options.bdev
                    )));
                }
                added.set(nsid);
                view::list(spdk, &nqn, subsystem, (nsid, &options.name), hidden)?;
                let watch = bdev::watch(spdk, OPERATION, &options.bdev)?;
                let bdev = watch.presence();
                WATCHES.with_borrow_mut(|watches| watches.insert((nqn, nsid), watch));
                Ok(Added {
                    nsid,
                    bdev,
                    metadata_size,
                })
            };
            ready(add())
        }
    })
    .await;
    match result {
        // Rollback: the poll groups failed to take up the namespace, and can resume without it.
        Err(error) if added.get() != 0 => match remove(spdk, nqn, added.get()).await {
            Ok(()) => Err(error.undone()),
            left => Err(error.after_undo(left)),
        },
        result => result,
    }
}

fn check_bdev(spdk: Spdk, operation: &'static str, name: &str) -> Result<(), Error> {
    let bdev = bdev::existing(spdk, operation, name)?;
    // SAFETY: runs on the app thread; the bdev was found without an await since.
    match unsafe { bdev::claimed_by(bdev.as_ptr()) } {
        Some(owner) => Err(bdev::claimed(operation, name, &owner)),
        None => Ok(()),
    }
}

fn check_nsid(subsystem: Subsystem, operation: &'static str, nsid: u32) -> Result<(), Error> {
    // SAFETY: runs on the app thread; the caller found the subsystem without an await since.
    let (max, taken) = unsafe {
        let subsystem = subsystem.as_ptr();
        let max = sys::spdk_nvmf_subsystem_get_max_nsid(subsystem);
        let taken = |nsid| !sys::spdk_nvmf_subsystem_get_ns(subsystem, nsid).is_null();
        let taken = if nsid == 0 {
            (1..=max).all(taken)
        } else {
            taken(nsid)
        };
        (max, taken)
    };
    if nsid > max {
        return Err(Error::new(operation, libc::ERANGE).with_detail(format!(
            "namespace id {nsid}: the subsystem's highest is {max}"
        )));
    }
    match (taken, nsid) {
        (false, _) => Ok(()),
        (true, 0) => Err(Error::new(operation, libc::ENOSPC)
            .with_detail(format!("all {max} namespace ids are in use"))),
        (true, _) => Err(Error::new(operation, libc::EEXIST)
            .with_detail(format!("namespace id {nsid} is in use"))),
    }
}

/// Rejects duplicate identifiers: hosts take two namespaces with one identifier for one disk, or refuse the second.
fn check_identifiers(
    subsystem: Subsystem,
    operation: &'static str,
    wanted: &Options,
    of_bdev: [u8; 16],
) -> Result<(), Error> {
    let uuid = wanted.uuid.unwrap_or(of_bdev);
    let nguid = wanted.nguid.unwrap_or(of_bdev);
    let subsystem = subsystem.as_ptr();
    // SAFETY: runs on the app thread, the only one that adds and removes namespaces, without an await in between;
    // the options are all zero at first, which is valid, and written up to the size passed.
    unsafe {
        let mut namespace = sys::spdk_nvmf_subsystem_get_first_ns(subsystem);
        while !namespace.is_null() {
            let mut other: sys::spdk_nvmf_ns_opts = std::mem::zeroed();
            let size = size_of::<sys::spdk_nvmf_ns_opts>();
            sys::spdk_nvmf_ns_get_opts(namespace, &mut other, size);
            let (its_uuid, its_eui64) = (other.uuid.u.raw, other.eui64);
            let its_nguid = other.nguid;
            let same = if uuid == its_uuid {
                Some(("uuid", hex(&uuid)))
            } else if nguid == its_nguid {
                Some(("nguid", hex(&nguid)))
            } else {
                let eui64 = wanted.eui64.filter(|eui64| *eui64 == its_eui64);
                eui64.map(|eui64| ("eui64", hex(&eui64)))
            };
            if let Some((field, value)) = same {
                let nsid = sys::spdk_nvmf_ns_get_id(namespace);
                return Err(Error::new(operation, libc::EEXIST).with_detail(format!(
                    "namespace id {nsid} of the subsystem has the {field} {value} already"
                )));
            }
            namespace = sys::spdk_nvmf_subsystem_get_next_ns(subsystem, namespace);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a namespace once its I/O in flight has drained; rate limits of the bdev are lifted meanwhile. ENODEV for
/// an unknown subsystem, ENOENT for an unknown ID.
pub async fn remove(spdk: Spdk, nqn: &str, nsid: u32) -> Result<(), Error> {
    const OPERATION: &str = "remove namespace";
    // This also rejects nsid 0 and the wildcard, which pause something else in SPDK.
    let namespaces = list(spdk, nqn).inspect_err(|_| forget(nqn, |id| id == nsid))?;
    let Some(namespace) = namespaces.into_iter().find(|is| is.nsid == nsid) else {
        forget(nqn, |id| id == nsid);
        return Err(absent(OPERATION, nqn, nsid));
    };
    let name = nqn.to_owned();
    let _patience = give_up_unanswered(spdk, &namespace.bdev);
    unlimited(spdk, &namespace.bdev, || {
        paused(spdk, OPERATION, nqn, nsid, move |subsystem| {
            // SAFETY: runs on the app thread, with the subsystem paused.
            let rc = unsafe { sys::spdk_nvmf_subsystem_remove_ns(subsystem.as_ptr(), nsid) };
            forget(&name, |id| id == nsid);
            ready(if rc == 0 {
                Ok(())
            } else {
                Err(absent(OPERATION, &name, nsid))
            })
        })
    })
    .await
}

/// How long I/O in flight of a namespace being removed may stay unanswered. Shorter than the timeout of the pause
/// that waits for it, 5 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Starts a timeout of [`PATIENCE`], cancelled by dropping the result. On expiry it fails the bdev's I/O that the
/// backend has not answered, and I/O that is queued for a path.
fn give_up_unanswered(spdk: Spdk, bdev: &str) -> Rc<()> {
    let waits = Rc::new(());
    let (still, bdev) = (Rc::downgrade(&waits), bdev.to_owned());
    spawn_local(async move {
        sleep(spdk, PATIENCE).await;
        if still.upgrade().is_some()
            && let Err(error) = bdev::end_io(spdk, &bdev)
        {
            log::note(
                sys::spdk_log_level_SPDK_LOG_WARN,
                format!("I/O of bdev {bdev:?} is not ended: {error}"),
            );
        }
    });
    waits
}

/// Runs `change` while the bdev has no rate limits, then restores the previous limits, unless they were changed
/// meanwhile or the bdev is gone.
async fn unlimited<F: Future<Output = Result<(), Error>>>(
    spdk: Spdk,
    bdev: &str,
    change: impl FnOnce() -> F,
) -> Result<(), Error> {
    let none = qos::Limits::default();
    let limits = qos::get(spdk, bdev).unwrap_or_default();
    let _lifted = qos::Lifted::note(spdk, bdev);
    if limits == none || qos::set(spdk, bdev, none).await.is_err() {
        return change().await;
    }
    let result = change().await;
    if qos::get(spdk, bdev).is_ok_and(|now| now == none)
        && let Err(error) = qos::set(spdk, bdev, limits).await
    {
        log::note(
            sys::spdk_log_level_SPDK_LOG_ERROR,
            format!("bdev {bdev:?} has no rate limits any more: {error}"),
        );
    }
    result
}

/// Drops the watches on the bdevs of removed namespaces, and their lists of hosts.
pub(super) fn forget(nqn: &str, which: impl Fn(u32) -> bool) {
    WATCHES.with_borrow_mut(|watches| watches.retain(|(of, id), _| of != nqn || !which(*id)));
    view::forget(nqn, which);
}

/// Sets the mask of the namespace that has this name, or will have it: the NQNs of the hosts that may see it, admitted or
/// not; `None` for all. Connected hosts are notified of the change.
///
/// ENODEV for an unknown subsystem, EINVAL for an invalid NQN, ETIMEDOUT if the subsystem's I/O does not drain. After an
/// error the previous mask is in force.
pub async fn mask(
    spdk: Spdk,
    nqn: &str,
    name: &str,
    hosts: Option<BTreeSet<String>>,
) -> Result<(), Error> {
    view::mask(spdk, nqn, name, hosts).await
}

/// As [`mask`](fn@mask), for a namespace that is not there: the mask is in force when it is added, to whichever
/// subsystem has the NQN then.
pub fn note_mask(_: Spdk, nqn: &str, name: &str, hosts: Option<BTreeSet<String>>) {
    view::note_mask(nqn, name, hosts);
}

fn absent(operation: &'static str, nqn: &str, nsid: u32) -> Error {
    Error::new(operation, libc::ENOENT)
        .with_detail(format!("subsystem {nqn:?} has no namespace {nsid}"))
}

/// Returns whether the subsystem exists and has a namespace with this ID.
pub fn exists(spdk: Spdk, nqn: &str, nsid: u32) -> bool {
    find(spdk, "look up namespace", nqn).is_ok_and(|subsystem| {
        // SAFETY: runs on the app thread; the subsystem was found without an await since.
        !unsafe { sys::spdk_nvmf_subsystem_get_ns(subsystem.as_ptr(), nsid) }.is_null()
    })
}

/// Returns the subsystem's namespaces in the order of their IDs.
pub fn list(spdk: Spdk, nqn: &str) -> Result<Vec<Namespace>, Error> {
    let subsystem = find(spdk, "list namespaces", nqn)?.as_ptr();
    let mut namespaces = Vec::new();
    // SAFETY: runs on the app thread, the only one that adds and removes namespaces, without an await in between. A
    // namespace keeps its bdev open.
    unsafe {
        let mut namespace = sys::spdk_nvmf_subsystem_get_first_ns(subsystem);
        while !namespace.is_null() {
            namespaces.push(Namespace {
                nsid: sys::spdk_nvmf_ns_get_id(namespace),
                bdev: string(sys::spdk_bdev_get_name(sys::spdk_nvmf_ns_get_bdev(
                    namespace,
                ))),
            });
            namespace = sys::spdk_nvmf_subsystem_get_next_ns(subsystem, namespace);
        }
    }
    Ok(namespaces)
}
