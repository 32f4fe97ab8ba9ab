//! The end of paths. It does not wait for attempts to attach others to the same controller, which take
//! as long as their peers like, within their limits.

use std::future::Future;
use std::time::{Duration, Instant};

use spdk_sys as sys;

use super::PathId;
use crate::app_thread::Spdk;
use crate::completion::{Status, call, completion};
use crate::cstr::cstr;
use crate::deadline::within;
use crate::error::{Error, check};
use crate::locks::lock;
use crate::timer::sleep;
use spdk_control::executor::spawn_local;

/// How long [`detach`] is waited for. What SPDK waits for in it is over within two seconds.
const DETACH_LIMIT: Duration = Duration::from_secs(5);

/// Between two tries to take a path away that is being connected.
const RETRY: Duration = Duration::from_millis(20);

/// Detaches one path of a controller, or with None all of them. With the last path go the bdevs.
///
/// ENODEV for an unknown controller, ENXIO for an unknown path, ETIMEDOUT if it has
/// not gone in time; that goes on by itself.
pub async fn detach(spdk: Spdk, name: &str, path: Option<&PathId>) -> Result<(), Error> {
    const OPERATION: &str = "detach NVMe controller";
    let path = path.cloned();
    let give_up = Instant::now() + DETACH_LIMIT;
    alone(spdk, OPERATION, name, move |name| async move {
        loop {
            match remove(OPERATION, &name, path.as_ref()).await {
                // It is being connected, and has others to take its place. The attempt ends first.
                Err(error) if is_busy(&error) && Instant::now() < give_up => {
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

/// Runs a change alone, in a task of its own, and waits for it no longer than [`DETACH_LIMIT`].
async fn alone<F: Future<Output = Result<(), Error>> + 'static>(
    spdk: Spdk,
    operation: &'static str,
    name: &str,
    change: impl FnOnce(String) -> F + 'static,
) -> Result<(), Error> {
    let (done, is_done) = completion::<Result<(), Error>>();
    let owned = name.to_owned();
    spawn_local(async move {
        let _alone = lock("NVMe detach", &owned).await;
        done.complete(change(owned).await);
    });
    match within(spdk, DETACH_LIMIT, is_done).await {
        Some(result) => result?,
        None => Err(Error::new(operation, libc::ETIMEDOUT).with_detail(format!(
            "{name:?} has not finished within {} s",
            DETACH_LIMIT.as_secs()
        ))),
    }
}

/// Ends the attempt to connect a path, if there is one.
fn end_attempt(name: &str, path: Option<&PathId>) -> Result<(), Error> {
    let Some(path) = path else { return Ok(()) };
    let name = cstr("controller name", name)?;
    let (id, source) = path.to_c()?;
    // SAFETY: on the app thread (the caller has proof); id and strings outlive the call.
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
        // SAFETY: on the app thread; id and strings outlive the call, which copies
        // them; the callback takes the argument back, once, unless it is refused.
        unsafe { sys::opi_nvme_detach(c_name.as_ptr(), id, source, callback, argument) }
    })
    .await
    .map_err(|error| error.with_detail(format!("{name:?}")))?;
    check(operation, status).map_err(|error| error.with_detail(format!("{name:?}")))
}
