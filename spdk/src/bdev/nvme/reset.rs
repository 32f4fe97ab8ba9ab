//! Resets (reconnects) the paths of a controller.
//!
//! ```text
//! path 1 ─► reset ─► connected
//!             └─ share of the time exceeded ─► path 2 ─► reset ─► connected ─► path 1 awaited until the deadline
//! ```

use std::time::{Duration, Instant};

use spdk_sys as sys;

use super::{Path, connection, paths};
use crate::app_thread::Spdk;
use crate::completion::{Promise, completion};
use crate::deadline::within;
use crate::error::{Error, check};
use crate::locks::lock;
use crate::step::spawn_local;
use crate::timer::sleep;

const OPERATION: &str = "reset NVMe controller";

/// Delay between retries while another reset or reconnect of the path is in flight.
const RETRY: Duration = Duration::from_millis(20);

type Outcome = Result<(), Error>;

/// Disconnects and reconnects a controller's paths one after the other, so that I/O continues over the others; I/O in
/// flight on a path is aborted. A slow path delays the next one by no more than its share of `limit`.
///
/// ENODEV for an unknown controller. EIO if a path could not be reconnected, ETIMEDOUT if one has not reconnected
/// within `limit`; the detail names all such paths, and SPDK goes on reconnecting them. ETIMEDOUT also if another reset
/// of the controller has not ended by then.
pub async fn reset(spdk: Spdk, name: &str, limit: Duration) -> Result<(), Error> {
    let give_up = Instant::now() + limit;
    let alone = match limit {
        Duration::ZERO => None,
        _ => within(spdk, limit, lock("NVMe reset", name)).await,
    };
    let Some(_alone) = alone else {
        let detail = format!("another reset of {name:?} has not ended in time");
        return Err(Error::new(OPERATION, libc::ETIMEDOUT).with_detail(detail));
    };
    let limit = give_up.saturating_duration_since(Instant::now());
    let mut connections = paths(spdk, name)?;
    connections.retain(|path| path.active);
    let share = limit / u32::try_from(connections.len()).unwrap_or(u32::MAX).max(1);
    let mut failed = Vec::new();
    let mut late = Vec::new();
    for path in connections {
        let (done, mut is_done) = completion();
        spawn_local(connect_anew(
            spdk,
            name.to_owned(),
            path.clone(),
            give_up,
            done,
        ));
        match within(spdk, share, &mut is_done).await {
            Some(outcome) => failed.extend(outcome?.err().map(|error| (path, error))),
            None => late.push((path, is_done)),
        }
    }
    for (path, is_done) in late {
        let left = give_up.saturating_duration_since(Instant::now());
        let outcome = match within(spdk, left, is_done).await {
            Some(outcome) => outcome?,
            None => Err(not_back(limit)),
        };
        failed.extend(outcome.err().map(|error| (path, error)));
    }
    let Some((_, Error { errno, .. })) = failed.first() else {
        return Ok(());
    };
    let all: Vec<String> = failed
        .iter()
        .map(|(path, error)| described(path, error))
        .collect();
    Err(Error::new(OPERATION, errno.0).with_detail(all.join("; ")))
}

fn not_back(limit: Duration) -> Error {
    let detail = format!("has not come back within {} ms", limit.as_millis());
    Error::new(OPERATION, libc::ETIMEDOUT).with_detail(detail)
}

fn described(path: &Path, error: &Error) -> String {
    let id = path.id().map(|id| id.to_string());
    let what = error.detail.clone().unwrap_or_else(|| error.to_string());
    format!("{} {what}", id.unwrap_or_else(|| path.subsystem.clone()))
}

/// Reconnects one path, after waiting for the end of an attempt in flight.
async fn connect_anew(
    spdk: Spdk,
    name: String,
    path: Path,
    give_up: Instant,
    done: Promise<Outcome>,
) {
    let begun = Instant::now();
    let outcome = loop {
        match connect_once(&name, &path).await {
            Err(error) if error.errno.0 == libc::EBUSY => {
                if Instant::now() >= give_up {
                    break Err(not_back(begun.elapsed()));
                }
                sleep(spdk, RETRY).await;
            }
            // The path was detached meanwhile.
            Err(error) if error.errno.0 == libc::ENXIO => break Ok(()),
            outcome => break outcome,
        }
    };
    done.complete(outcome);
}

async fn connect_once(name: &str, path: &Path) -> Outcome {
    connection::forget(path);
    // SAFETY: on the app thread; `opi_nvme_reset` of the shim fulfils the contract of `done`.
    let done = unsafe { connection::done(OPERATION, name, path, sys::opi_nvme_reset) };
    let Some(ended) = done.await? else {
        return Ok(());
    };
    match -ended.status {
        // A reconnect or a detach began between the check and the reset.
        libc::EBUSY | libc::ENXIO => check(OPERATION, ended.status),
        // SPDK's module reports only that the reset failed; the reason comes from the hooks.
        _ => check(OPERATION, ended.status).map_err(|_| {
            let unknown =
                || "it could not be connected: SPDK's log at level debug says more".to_owned();
            let what = ended.reason.unwrap_or_else(unknown);
            Error::new(OPERATION, libc::EIO).with_detail(what)
        }),
    }
}
