//! Namespaces: bdevs that hosts see through a subsystem. When the bdev goes, SPDK
//! takes the namespace away.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::ready;
use std::rc::Rc;
use std::time::Duration;

use spdk_sys as sys;

use super::pause::paused;
use super::reservation::{self, Kept};
use super::{Subsystem, find, view};
use crate::bdev::{self, Presence, Watch, qos};
use crate::cstr::{cstr, string};
use crate::error::Error;
use crate::hooks::KEEPS_RESERVATIONS;
use crate::log;
use crate::runtime::Spdk;
use crate::timer::sleep;
use spdk_control::executor::spawn_local;

/// A namespace to add.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The bdev's name. The subsystem takes it for itself.
    pub bdev: String,
    /// Its id in the subsystem; 0 takes the lowest that is free.
    pub nsid: u32,
    /// None takes the bdev's.
    pub uuid: Option<[u8; 16]>,
    /// None takes the bdev's UUID.
    pub nguid: Option<[u8; 16]>,
    /// None has none.
    pub eui64: Option<[u8; 8]>,
    /// Where its reservations are kept, if they are to persist through power loss. SPDK as it is cannot do
    /// that: see [`KEEPS_RESERVATIONS`](crate::hooks::KEEPS_RESERVATIONS).
    pub kept: Option<Kept>,
}

/// A namespace that was added.
#[derive(Debug, Clone)]
pub struct Added {
    /// Its id, from 1.
    pub nsid: u32,
    /// Whether its bdev is still there, and so the namespace.
    pub bdev: Presence,
    /// Bytes of metadata with each block of the bdev.
    pub metadata_size: u32,
}

thread_local! {
    /// The bdevs of the namespaces that were added here, by NQN and id.
    static WATCHES: RefCell<HashMap<(String, u32), Watch>> = RefCell::default();
}

/// A namespace of a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its id, from 1.
    pub nsid: u32,
    /// The bdev's name.
    pub bdev: String,
}

/// Adds a namespace. Connected hosts that see it are told.
///
/// ENODEV for an unknown subsystem or bdev, EBUSY for a bdev in use, EEXIST for an
/// id in use and for an identifier that another namespace of the subsystem has (also
/// where it is the bdev's), ERANGE for one above the subsystem's highest, ENOSPC if none is free.
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
                let kept = options.kept.clone().filter(|_| KEEPS_RESERVATIONS);
                let kept = kept.map(|kept| cstr("name", &reservation::keep(spdk, kept)));
                let kept = kept.transpose()?;
                // SAFETY: on the app thread, the subsystem paused; the arrays and
                // the name outlive the call.
                let nsid = unsafe {
                    sys::opi_nvmf_add_ns(
                        subsystem.as_ptr(),
                        c_bdev.as_ptr(),
                        options.nsid,
                        options.uuid.unwrap_or_default().as_ptr(),
                        options.nguid.unwrap_or_default().as_ptr(),
                        options.eui64.unwrap_or_default().as_ptr(),
                        kept.as_ref().map_or(std::ptr::null(), |kept| kept.as_ptr()),
                        view::is_listed(&nqn),
                    )
                };
                if nsid == 0 {
                    return Err(Error::new(OPERATION, libc::EIO).with_detail(format!(
                        "SPDK refuses bdev {:?}; its log says why",
                        options.bdev
                    )));
                }
                added.set(nsid);
                view::list(spdk, &nqn, subsystem, nsid)?;
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
    if result.is_err() && added.get() != 0 {
        // The reactors could not take the namespace up: without it they can resume.
        remove(spdk, nqn, added.get()).await?;
    }
    result
}

fn check_bdev(spdk: Spdk, operation: &'static str, name: &str) -> Result<(), Error> {
    let bdev = bdev::existing(spdk, operation, name)?;
    // SAFETY: on the app thread, the bdev just found.
    match unsafe { bdev::claimed_by(bdev.as_ptr()) } {
        Some(owner) => Err(bdev::claimed(operation, name, &owner)),
        None => Ok(()),
    }
}

fn check_nsid(subsystem: Subsystem, operation: &'static str, nsid: u32) -> Result<(), Error> {
    // SAFETY: on the app thread, with a subsystem that the caller has just found.
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

/// Hosts take two namespaces of one identifier for one disk, or refuse the second.
fn check_identifiers(
    subsystem: Subsystem,
    operation: &'static str,
    wanted: &Options,
    of_bdev: [u8; 16],
) -> Result<(), Error> {
    let uuid = wanted.uuid.unwrap_or(of_bdev);
    let nguid = wanted.nguid.unwrap_or(of_bdev);
    let subsystem = subsystem.as_ptr();
    // SAFETY: on the app thread, where alone namespaces come and go, and without an await
    // in between; the options are copied into a struct of the size given.
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

/// Removes a namespace, once its I/O in flight is done, which a rate limit of its bdev
/// does not hold up. ENODEV for an unknown subsystem, ENOENT for an unknown id.
pub async fn remove(spdk: Spdk, nqn: &str, nsid: u32) -> Result<(), Error> {
    const OPERATION: &str = "remove namespace";
    // Also keeps nsid 0 and the wildcard, which pause other things, from SPDK.
    let namespaces = list(spdk, nqn).inspect_err(|_| forget(nqn, |id| id == nsid))?;
    let Some(namespace) = namespaces.into_iter().find(|is| is.nsid == nsid) else {
        forget(nqn, |id| id == nsid);
        return Err(absent(OPERATION, nqn, nsid));
    };
    let name = nqn.to_owned();
    let _patience = give_up_unanswered(spdk, &namespace.bdev);
    unlimited(spdk, &namespace.bdev, || {
        paused(spdk, OPERATION, nqn, nsid, move |subsystem| {
            // SAFETY: on the app thread, the subsystem paused.
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

/// How long I/O in flight of a namespace that is removed may stay unanswered: the pause, which waits for it,
/// has 5 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Unless what it gives is dropped within [`PATIENCE`]: fails the I/O of the bdev that its backend has not
/// answered, and what waits for a path.
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

/// Runs `change` while the bdev has no rate limits, and gives it back those that it had, unless it got
/// others meanwhile or is gone.
async fn unlimited<F: Future<Output = Result<(), Error>>>(
    spdk: Spdk,
    bdev: &str,
    change: impl FnOnce() -> F,
) -> Result<(), Error> {
    let none = qos::Limits::default();
    let limits = qos::get(spdk, bdev).unwrap_or_default();
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

/// Looks no longer after the bdevs of these namespaces, which have gone.
pub(super) fn forget(nqn: &str, which: impl Fn(u32) -> bool) {
    WATCHES.with_borrow_mut(|watches| watches.retain(|(of, id), _| of != nqn || !which(*id)));
}

fn absent(operation: &'static str, nqn: &str, nsid: u32) -> Error {
    Error::new(operation, libc::ENOENT)
        .with_detail(format!("subsystem {nqn:?} has no namespace {nsid}"))
}

/// Whether the subsystem is there and has a namespace of this id.
pub fn exists(spdk: Spdk, nqn: &str, nsid: u32) -> bool {
    find(spdk, "look up namespace", nqn).is_ok_and(|subsystem| {
        // SAFETY: on the app thread, the subsystem just found.
        !unsafe { sys::spdk_nvmf_subsystem_get_ns(subsystem.as_ptr(), nsid) }.is_null()
    })
}

/// The subsystem's namespaces, in the order of their ids.
pub fn list(spdk: Spdk, nqn: &str) -> Result<Vec<Namespace>, Error> {
    let subsystem = find(spdk, "list namespaces", nqn)?.as_ptr();
    let mut namespaces = Vec::new();
    // SAFETY: on the app thread, where alone namespaces come and go, and without
    // an await in between. A namespace keeps its bdev open.
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
