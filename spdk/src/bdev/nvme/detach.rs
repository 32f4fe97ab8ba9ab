//! Detaches paths. A detach does not wait for attempts to attach other paths to the same controller: how long these
//! take depends on their peers, within the connect timeout.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use spdk_sys as sys;

use super::{Path, PathId, PathState, paths};
use crate::app_thread::Spdk;
use crate::completion::{Status, call};
use crate::cstr::cstr;
use crate::deadline::in_task;
use crate::error::{Error, check};
use crate::timer::sleep;

/// Timeout of [`detach`]. SPDK's own waits in it end within two seconds.
const DETACH_LIMIT: Duration = Duration::from_secs(5);

/// Delay between retries of removing a path that is being connected.
const RETRY: Duration = Duration::from_millis(20);

/// Outcome of a detach that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// The path is gone, or was not there.
    Done,
    /// The path is the last one, and was to stay then.
    Needed,
}

/// Detaches one path of a controller, or with None all of them. Removing the last path removes the bdevs; with
/// `keep_last` it stays instead.
///
/// ENODEV for an unknown controller, ENXIO for an unknown path, ETIMEDOUT if the path has not been removed by the
/// deadline. A removal that SPDK has begun by then ends by itself; one that waits for others does not begin.
pub async fn detach(
    spdk: Spdk,
    name: &str,
    path: Option<&PathId>,
    keep_last: bool,
) -> Result<Detached, Error> {
    const OPERATION: &str = "detach NVMe controller";
    let (path, owned) = (path.cloned(), name.to_owned());
    let in_spdk = Rc::new(Cell::new(false));
    let is_begun = in_spdk.clone();
    let outcome = in_task(
        spdk,
        DETACH_LIMIT,
        ("NVMe detach", name),
        move |caller| async move {
            // Under the lock, so that no other detach that is under way takes the others.
            if let Some(path) = &path
                && keep_last
                && is_last(spdk, &owned, path)
            {
                return Ok(Detached::Needed);
            }
            while !caller.has_timed_out() {
                in_spdk.set(true);
                match remove(OPERATION, &owned, path.as_ref()).await {
                    // The path is being connected while the controller has others: end the attempt, then retry.
                    Err(error) if is_busy(&error) && !caller.has_timed_out() => {
                        in_spdk.set(false);
                        end_attempt(&owned, path.as_ref())?;
                        sleep(spdk, RETRY).await;
                    }
                    outcome => return outcome.map(|()| Detached::Done),
                }
            }
            Err(Error::new(OPERATION, libc::ETIMEDOUT))
        },
    );
    let limit = DETACH_LIMIT.as_secs();
    match outcome.await {
        Some(result) => result,
        None if is_begun.get() => Err(Error::unfinished(OPERATION)
            .with_detail(format!("{name:?} has not finished within {limit} s"))),
        None => Err(Error::new(OPERATION, libc::ETIMEDOUT).with_detail(format!(
            "another change of {name:?}, or an attempt to connect, has not ended within {limit} s, and this one did not begin"
        ))),
    }
}

/// Whether the controller has this path and no other that stays.
fn is_last(spdk: Spdk, name: &str, path: &PathId) -> bool {
    let mut there = paths(spdk, name).unwrap_or_default();
    there.retain(|path| path.state != PathState::Deleting);
    let is_it = |there: &Path| there.id().as_ref() == Some(path);
    there.iter().any(is_it) && there.iter().all(is_it)
}

fn is_busy(error: &Error) -> bool {
    matches!(error.errno.0, libc::EBUSY | libc::EINPROGRESS)
}

/// Ends a connection attempt of the path, if one is in flight.
fn end_attempt(name: &str, path: Option<&PathId>) -> Result<(), Error> {
    let Some(path) = path else { return Ok(()) };
    let name = cstr("controller name", name)?;
    let (id, source) = path.to_c()?;
    // SAFETY: on the app thread (the caller has proof); the ID and the strings outlive the call.
    unsafe { sys::opi_nvme_end_attempt(name.as_ptr(), &id, source.as_ptr()) };
    Ok(())
}

pub(super) async fn remove(
    operation: &'static str,
    name: &str,
    path: Option<&PathId>,
) -> Result<(), Error> {
    let c_name = cstr("controller name", name)?;
    let id = path.map(PathId::to_c).transpose()?;
    let (id, source) = match &id {
        Some((id, source)) => (std::ptr::from_ref(id), source.as_ptr()),
        None => (std::ptr::null(), std::ptr::null()),
    };
    let status = call::<Status>(operation, |callback, argument| {
        // SAFETY: on the app thread; the ID and the strings outlive the call, which copies them; the callback
        // reclaims the argument exactly once, unless the call is refused.
        unsafe { sys::opi_nvme_detach(c_name.as_ptr(), id, source, callback, argument) }
    })
    .await
    .map_err(|error| error.with_detail(format!("{name:?}")))?;
    check(operation, status).map_err(|error| error.with_detail(format!("{name:?}")))
}
