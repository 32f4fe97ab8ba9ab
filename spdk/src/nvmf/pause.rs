//! Changes to a subsystem that SPDK allows only while it is paused (quiesced).
//!
//! ```text
//! waiting for the lock ─► pausing ─► paused: change runs ─► resuming ─► done
//!          └──────┬─────────┘ PAUSE_LIMIT passed: ETIMEDOUT, the change never runs,
//!                 └─ and the subsystem is resumed once SPDK has paused it
//! ```
//!
//! A pause drains I/O in flight, so a backend that does not answer can block it; the change is then abandoned with
//! an error. Changes of one subsystem are serialized by a lock: SPDK would let the second change run under the first
//! one's pause, and lose that pause to the first one's resume. A change runs inside SPDK's callback, where nothing
//! else (the removal of a namespace whose bdev has gone) can have resumed the subsystem yet. All of this is a task
//! of its own, so that the subsystem does not stay paused if the caller is dropped.

use std::ffi::{c_int, c_void};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use spdk_sys as sys;
use tokio::sync::OwnedMutexGuard;

use super::{Subsystem, change_state, check_status, find};
use crate::app_thread::Spdk;
use crate::completion::{Promise, completion};
use crate::deadline::in_task;
use crate::error::Error;
use crate::locks;
use crate::log;
use crate::step::Named;
use spdk_control::executor::caught;

/// Timeout of a change for the subsystem to be paused, including the wait for its lock.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// The kind of the locks of subsystems.
pub(super) const KIND: &str = "subsystem";

/// Acquires the exclusive right to change a subsystem.
pub(super) async fn lock(nqn: &str) -> OwnedMutexGuard<()> {
    locks::lock(KIND, nqn).await
}

/// Pauses the subsystem, runs `change`, awaits the returned future, and resumes.
///
/// I/O of namespace `nsid` is held too, unless that is 0. Returns the error of `change`, else one of pausing or
/// resuming. A panic in `change` becomes an error.
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
    let name = nqn.to_owned();
    let object = (KIND, nqn);
    let outcome = in_task(spdk, PAUSE_LIMIT, object, move |caller| async move {
        // A caller that has timed out was told that nothing was done.
        let change = move |subsystem| caller.commit().then(|| change(subsystem));
        let result = match pause(spdk, operation, &name, nsid, change).await? {
            Some(Some(change)) => caught(change).await,
            Some(None) => Some(Err(Error::new(operation, libc::ECANCELED))),
            None => None,
        };
        let result = result.unwrap_or_else(|| Err(Error::cut_off(operation, libc::EIO)));
        match (result, resume(spdk, operation, &name).await) {
            // The change was made.
            (Ok(_), Err(error)) => Err(error.unsettled()),
            (result, _) => result,
        }
    });
    outcome.await.unwrap_or_else(|| {
        Err(Error::new(operation, libc::ETIMEDOUT).with_detail(format!(
            "subsystem {nqn:?} could not be paused within {} s: I/O to it does not complete",
            PAUSE_LIMIT.as_secs()
        )))
    })
}

/// Owned by C until the subsystem is paused.
struct Pausing<R, C> {
    change: C,
    promise: Promise<Result<Option<R>, c_int>>,
    step: Named,
}

/// Pauses the subsystem and starts `change`; `None` if that panicked.
async fn pause<R: 'static, C: FnOnce(Subsystem) -> R + 'static>(
    spdk: Spdk,
    operation: &'static str,
    nqn: &str,
    nsid: u32,
    change: C,
) -> Result<Option<R>, Error> {
    let subsystem = find(spdk, operation, nqn)?;
    let (promise, pending) = completion();
    let step = Named::here();
    let pausing = Box::into_raw(Box::new(Pausing {
        change,
        promise,
        step,
    }));
    // SAFETY: runs on the app thread; the subsystem was found without an await since; `on_paused` takes ownership
    // of the box, unless SPDK refuses.
    let rc = unsafe {
        sys::spdk_nvmf_subsystem_pause(
            subsystem.as_ptr(),
            nsid,
            Some(on_paused::<R, C>),
            pausing.cast(),
        )
    };
    if rc != 0 {
        // SAFETY: SPDK refused the pause and did not take the box, so it is still owned here.
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
    // SAFETY: `argument` is the box that `pause` passed; SPDK calls back once, on this thread.
    let Pausing {
        change,
        promise,
        step,
    } = *unsafe { Box::from_raw(argument.cast::<Pausing<R, C>>()) };
    let result = match Subsystem::new(subsystem) {
        Some(subsystem) if status == 0 => {
            // A panic must not unwind into C, and must not leave the subsystem paused.
            let change = AssertUnwindSafe(|| step.run(|| change(subsystem)));
            Ok(catch_unwind(change).ok())
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
        let step = Named::here();
        let pausing = Box::into_raw(Box::new(Pausing {
            change,
            promise,
            step,
        }));
        // SAFETY: called as SPDK does, once; the change does not dereference the subsystem.
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
