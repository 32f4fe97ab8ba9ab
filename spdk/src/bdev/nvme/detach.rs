//! Detaches paths. A detach does not wait for attempts to attach other paths to the same controller: how long these
//! take depends on their peers, within the connect timeout.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use spdk_sys as sys;

use super::PathId;
use crate::app_thread::Spdk;
use crate::completion::{Status, call, completion};
use crate::cstr::cstr;
use crate::deadline::within;
use crate::error::{Error, check};
use crate::locks::lock;
use crate::step::spawn_local;
use crate::timer::sleep;

/// Timeout of [`detach`]. SPDK's own waits in it end within two seconds.
const DETACH_LIMIT: Duration = Duration::from_secs(5);

/// Delay between retries of removing a path that is being connected.
const RETRY: Duration = Duration::from_millis(20);

/// Detaches one path of a controller, or with None all of them. Removing the last path removes the bdevs.
///
/// ENODEV for an unknown controller, ENXIO for an unknown path, ETIMEDOUT if the path has not been removed by the
/// deadline. A removal that SPDK has begun by then ends by itself; one that waits for others does not begin.
pub async fn detach(spdk: Spdk, name: &str, path: Option<&PathId>) -> Result<(), Error> {
    const OPERATION: &str = "detach NVMe controller";
    let path = path.cloned();
    alone(spdk, OPERATION, name, move |name, given_up| async move {
        loop {
            match remove(OPERATION, &name, path.as_ref()).await {
                // The path is being connected while the controller has others: end the attempt, then retry.
                Err(error) if is_busy(&error) && !given_up.get() => {
                    end_attempt(&name, path.as_ref())?;
                    sleep(spdk, RETRY).await;
                }
                outcome => break outcome,
            }
        }
    })
    .await
}

fn is_busy(error: &Error) -> bool {
    matches!(error.errno.0, libc::EBUSY | libc::EINPROGRESS)
}

/// Runs a change under the controller's detach lock in its own task, and waits for it up to [`DETACH_LIMIT`]. The change
/// is told whether it was given up by then, and does not begin if it was.
async fn alone<F: Future<Output = Result<(), Error>> + 'static>(
    spdk: Spdk,
    operation: &'static str,
    name: &str,
    change: impl FnOnce(String, Rc<Cell<bool>>) -> F + 'static,
) -> Result<(), Error> {
    let (done, is_done) = completion::<Result<(), Error>>();
    let given_up = Rc::new(Cell::new(false));
    let (owned, is_given_up) = (name.to_owned(), given_up.clone());
    spawn_local(async move {
        let _alone = lock("NVMe detach", &owned).await;
        if !is_given_up.get() {
            done.complete(change(owned, is_given_up).await);
        }
    });
    if let Some(result) = within(spdk, DETACH_LIMIT, is_done).await {
        return result?;
    }
    given_up.set(true);
    Err(Error::unfinished(operation).with_detail(format!(
        "{name:?} has not finished within {} s",
        DETACH_LIMIT.as_secs()
    )))
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
