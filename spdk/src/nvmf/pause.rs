//! Changes to a subsystem that SPDK allows only while it is paused.
//!
//! ```text
//! waiting for the lock ─► pausing ─► paused: change runs ─► resuming ─► done
//!          └──────┬─────────┘ PAUSE_LIMIT passed: ETIMEDOUT, the change never runs,
//!                 └─ and the subsystem is resumed once SPDK has paused it
//! ```
//!
//! A pause waits for I/O in flight, so a backend that does not answer can hold it;
//! the change is then given up and that is said. Two changes of one subsystem
//! follow each other: SPDK would let the second see the first's pause and lose it
//! to the first's resume. The change itself runs inside SPDK's callback, where
//! nothing else (the removal of a namespace whose bdev has gone) can have resumed
//! the subsystem yet. All of it is a task of its own: whoever asked may go away,
//! and the subsystem does not stay paused.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use spdk_sys as sys;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::{Subsystem, change_state, check_status, find};
use crate::completion::{Promise, completion};
use crate::deadline::within;
use crate::error::Error;
use crate::locks;
use crate::log;
use crate::runtime::Spdk;
use spdk_control::executor::{caught, spawn_local};

/// How long a change waits for the subsystem to be paused.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// The right to change a subsystem.
pub(super) async fn lock(nqn: &str) -> OwnedMutexGuard<()> {
    locks::lock("subsystem", nqn).await
}

/// Pauses the subsystem, runs `change`, awaits what it returns, and resumes.
///
/// I/O of namespace `nsid` is held too, unless that is 0. The error of `change` is
/// the result, else one of pausing or resuming. A panic of `change` is an error.
pub(super) async fn paused<T, F>(
    spdk: Spdk,
    operation: &'static str,
    nqn: &str,
    nsid: u32,
    change: impl FnOnce(Subsystem) -> F + 'static,
) -> Result<T, Error>
where
    T: 'static,
    F: Future<Output = Result<T, Error>> + 'static,
{
    let given_up = Rc::new(Cell::new(false));
    let (begun, has_begun) = oneshot::channel::<()>();
    let (done, is_done) = completion::<Result<T, Error>>();
    spawn_local({
        let (given_up, nqn) = (given_up.clone(), nqn.to_owned());
        async move {
            let _alone = lock(&nqn).await;
            // The one who asked has been told that it is not done: the next one begins at once.
            if given_up.get() {
                return;
            }
            let change = move |subsystem| {
                (!given_up.get()).then(|| {
                    let _ = begun.send(());
                    change(subsystem)
                })
            };
            let result = match pause(spdk, operation, &nqn, nsid, change).await {
                Ok(Some(Some(change))) => caught(change).await,
                Ok(Some(None)) => Some(Err(Error::new(operation, libc::ECANCELED))),
                Ok(None) => None,
                Err(error) => return done.complete(Err(error)),
            };
            let result = result.unwrap_or_else(|| {
                let detail = "it was cut off by a fault of the program";
                Err(Error::new(operation, libc::EIO).with_detail(detail))
            });
            let resumed = resume(spdk, operation, &nqn).await;
            done.complete(result.and_then(|value| resumed.map(|()| value)));
        }
    });
    // A pause that fails drops the change and with it `begun`.
    if within(spdk, PAUSE_LIMIT, has_begun).await.is_some() {
        return is_done.await?;
    }
    given_up.set(true);
    Err(Error::new(operation, libc::ETIMEDOUT).with_detail(format!(
        "subsystem {nqn:?} could not be paused within {} s: I/O to it does not complete",
        PAUSE_LIMIT.as_secs()
    )))
}

/// What C holds until the subsystem is paused.
struct Pausing<R, C> {
    change: C,
    promise: Promise<Result<Option<R>, c_int>>,
}

/// Pauses the subsystem and begins `change`; `None` if that panicked.
async fn pause<R: 'static, C: FnOnce(Subsystem) -> R + 'static>(
    spdk: Spdk,
    operation: &'static str,
    nqn: &str,
    nsid: u32,
    change: C,
) -> Result<Option<R>, Error> {
    let subsystem = find(spdk, operation, nqn)?;
    let (promise, pending) = completion();
    let pausing = Box::into_raw(Box::new(Pausing { change, promise }));
    // SAFETY: on the app thread, the subsystem just found; `on_paused` takes the
    // box, unless SPDK refuses.
    let rc = unsafe {
        sys::spdk_nvmf_subsystem_pause(
            subsystem.as_ptr(),
            nsid,
            Some(on_paused::<R, C>),
            pausing.cast(),
        )
    };
    if rc != 0 {
        // SAFETY: SPDK did not take it.
        drop(unsafe { Box::from_raw(pausing) });
        return Err(Error::new(operation, rc));
    }
    match pending.await? {
        Ok(result) => Ok(result),
        Err(status) => {
            check_status(operation, status)?;
            Err(Error::new(operation, libc::EIO))
        }
    }
}

unsafe extern "C" fn on_paused<R, C: FnOnce(Subsystem) -> R>(
    subsystem: *mut sys::spdk_nvmf_subsystem,
    argument: *mut c_void,
    status: c_int,
) {
    // SAFETY: what `pause` passed; SPDK calls once, on this thread.
    let Pausing { change, promise } = *unsafe { Box::from_raw(argument.cast::<Pausing<R, C>>()) };
    let result = match Subsystem::new(subsystem) {
        Some(subsystem) if status == 0 => {
            // A panic must not unwind into C; and the subsystem is paused.
            Ok(catch_unwind(AssertUnwindSafe(|| change(subsystem))).ok())
        }
        _ => Err(status),
    };
    promise.complete(result);
}

async fn resume(spdk: Spdk, operation: &'static str, nqn: &str) -> Result<(), Error> {
    let subsystem = find(spdk, operation, nqn)?;
    change_state(operation, subsystem, sys::spdk_nvmf_subsystem_resume)
        .await
        .map_err(|error| {
            log::note(
                sys::spdk_log_level_SPDK_LOG_ERROR,
                format!("subsystem {nqn:?} stays paused: {error}"),
            );
            error.with_detail(format!("subsystem {nqn:?} could not be resumed"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_change_that_panics_in_the_callback_leaves_a_subsystem_that_is_to_be_resumed() {
        fn panics(_: Subsystem) {
            panic!("expected by this test")
        }
        let (promise, pending) = completion::<Result<Option<()>, c_int>>();
        let change: fn(Subsystem) = panics;
        let pausing = Box::into_raw(Box::new(Pausing { change, promise }));
        // SAFETY: as SPDK calls it, once; the change does not look at the subsystem.
        unsafe {
            on_paused::<(), fn(Subsystem)>(Subsystem::dangling().as_ptr(), pausing.cast(), 0);
        }
        let mut pending = std::pin::pin!(pending);
        let paused = pending
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(paused, Poll::Ready(Ok(Ok(None))));
    }
}
