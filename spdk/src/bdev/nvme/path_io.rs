//! I/O statistics of NVMe controllers by path.

use std::ffi::c_void;

use spdk_sys as sys;

use super::super::Stats;
use super::PathId;
use super::state::{Path, address, controllers, namespaces, paths};
use crate::app_thread::Spdk;
use crate::completion::{Callback, Promise, call};
use crate::cstr::{cstr, read};
use crate::error::Error;

/// Bounds of one reading: paths reported, and namespaces whose counters are read.
const MOST_PATHS: usize = 1024;
const MOST_NAMESPACES: usize = 8192;

/// A path and its I/O statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathIo {
    /// The controller's name.
    pub controller: String,
    /// The path.
    pub path: Path,
    /// I/O of all namespaces since the path was attached. `None` for a standby path, whose connection is counted under
    /// the active path, and for the paths of controllers beyond the bound of namespaces.
    pub stats: Option<Stats>,
}

/// Returns the I/O over each path of all controllers. Yields to the executor after each namespace.
///
/// # Errors
/// ENOMEM if SPDK has no memory for the reading.
pub async fn io_by_path(spdk: Spdk) -> Result<Vec<PathIo>, Error> {
    let (mut all, mut namespaces_read) = (Vec::new(), 0_usize);
    for controller in controllers(spdk) {
        // The controller may have been detached since it was listed.
        let Ok(mut paths) = paths(spdk, &controller) else {
            continue;
        };
        paths.truncate(MOST_PATHS.saturating_sub(all.len()));
        let namespaces = namespaces(spdk, &controller).unwrap_or_default();
        namespaces_read = namespaces_read.saturating_add(namespaces.len());
        let mut sums: Vec<Option<Stats>> = paths
            .iter()
            .map(|path| (path.active && namespaces_read <= MOST_NAMESPACES).then(zero))
            .collect();
        if sums.iter().any(Option::is_some) {
            for namespace in namespaces {
                for (id, stats) in of_bdev(&namespace.bdev).await? {
                    let at = paths
                        .iter()
                        .position(|path| path.id().as_ref() == Some(&id));
                    if let Some(Some(sum)) = at.and_then(|at| sums.get_mut(at)) {
                        sum.add(&stats);
                    }
                }
            }
        } else {
            spdk_control::executor::yield_now().await;
        }
        let known = paths.into_iter().zip(sums).map(|(path, stats)| PathIo {
            controller: controller.clone(),
            path,
            stats,
        });
        all.extend(known);
    }
    Ok(all)
}

/// Returns the I/O over one path, summed over the controller's namespaces; all zero for a standby path. ENODEV if no
/// controller of that name is attached.
pub async fn path_stats(spdk: Spdk, name: &str, path: &PathId) -> Result<Stats, Error> {
    let mut total = zero();
    for namespace in namespaces(spdk, name)? {
        let paths = of_bdev(&namespace.bdev).await?;
        for (_, stats) in paths.iter().filter(|(id, _)| id == path) {
            total.add(stats);
        }
    }
    Ok(total)
}

fn zero() -> Stats {
    Stats {
        // SAFETY: reads a value that is constant once SPDK is initialized.
        ticks_per_second: unsafe { sys::spdk_get_ticks_hz() },
        ..Stats::default()
    }
}

/// I/O of a bdev over each of its current paths; empty if the bdev has been removed since it was listed.
async fn of_bdev(bdev: &str) -> Result<Vec<(PathId, Stats)>, Error> {
    const OPERATION: &str = "read NVMe path statistics";
    let name = cstr("bdev name", bdev)?;
    let read = call::<PathsRead>(OPERATION, |callback, argument| {
        // SAFETY: on the app thread (the callers have proof); the name outlives the call; the callback reclaims the
        // argument exactly once, unless the call is refused.
        unsafe { sys::opi_nvme_read_paths(name.as_ptr(), callback, argument) }
    });
    match read.await {
        Err(error) if error.errno.0 == libc::ENODEV => Ok(Vec::new()),
        other => other.map_err(|error| error.with_detail(format!("bdev {bdev:?}"))),
    }
}

/// The callback that reports the I/O of a bdev over each of its paths.
struct PathsRead;

// SAFETY: `on_paths` reclaims the argument exactly once.
unsafe impl Callback for PathsRead {
    type Report = Vec<(PathId, Stats)>;
    type Function = Option<unsafe extern "C" fn(*mut c_void, *const sys::opi_nvme_path_io, usize)>;
    const FUNCTION: Self::Function = Some(on_paths);
}

unsafe extern "C" fn on_paths(
    argument: *mut c_void,
    paths: *const sys::opi_nvme_path_io,
    number: usize,
) {
    // SAFETY: the argument of a `call::<PathsRead>`; the shim calls back exactly once, on this thread.
    let promise = unsafe { Promise::<Vec<(PathId, Stats)>>::from_raw(argument) };
    let mut found = Vec::with_capacity(number);
    for at in 0..number {
        // SAFETY: the shim passes an array of `number` elements, valid for the duration of this call.
        let path = unsafe { &*paths.add(at) };
        if let Some(address) = address(&path.id) {
            let id = PathId {
                address,
                subsystem: read(&path.id.subnqn),
                source: read(&path.source_address).parse().ok(),
            };
            found.push((id, Stats::of(&path.stat)));
        }
    }
    promise.complete(found);
}
