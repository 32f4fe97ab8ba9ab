//! Rate limits (QoS) of a bdev, which may be changed while I/O runs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use spdk_sys as sys;

use super::{existing, names};
use crate::app_thread::Spdk;
use crate::completion::{Status, call_within};
use crate::error::{Error, check};
use crate::log;
use crate::stopping;

/// Rate limits; 0 is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Reads and writes combined, in I/Os per second, a multiple of 1000.
    pub rw_iops: u64,
    /// Reads and writes combined, in MiB/s.
    pub rw_mib: u64,
    /// Reads, in MiB/s.
    pub read_mib: u64,
    /// Writes, in MiB/s.
    pub write_mib: u64,
}

/// SPDK's granularity of I/O rates, in I/Os per second.
pub const IOPS_STEP: u64 = 1000;

/// Replaces the rate limits of a bdev.
///
/// ENODEV if there is none of that name, EINVAL for an I/O rate off [`IOPS_STEP`]
/// or a bandwidth that does not fit 64 bits of bytes, EAGAIN if another change is
/// under way, ETIMEDOUT if SPDK has not applied them in time.
pub async fn set(spdk: Spdk, name: &str, limits: Limits) -> Result<(), Error> {
    const OPERATION: &str = "set rate limits";
    let Limits {
        rw_iops,
        rw_mib,
        read_mib,
        write_mib,
    } = limits;
    if rw_iops % IOPS_STEP != 0 {
        return Err(Error::new(OPERATION, libc::EINVAL).with_detail(format!(
            "{rw_iops} I/Os a second: only multiples of {IOPS_STEP} can be"
        )));
    }
    if [rw_mib, read_mib, write_mib]
        .iter()
        .any(|mib| *mib > u64::MAX >> 20)
    {
        return Err(
            Error::new(OPERATION, libc::EINVAL).with_detail("a bandwidth of over 2^44 MiB/s")
        );
    }
    let bdev = existing(spdk, OPERATION, name)?;
    let mut by_type = [0; TYPES];
    for (index, limit) in [
        (
            sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_RW_IOPS_RATE_LIMIT,
            rw_iops,
        ),
        (
            sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_RW_BPS_RATE_LIMIT,
            rw_mib,
        ),
        (
            sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_R_BPS_RATE_LIMIT,
            read_mib,
        ),
        (
            sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_W_BPS_RATE_LIMIT,
            write_mib,
        ),
    ] {
        by_type[index as usize] = limit;
    }
    let status = call_within::<Status>(spdk, CHANGE_LIMIT, OPERATION, |callback, argument| {
        // SAFETY: on the app thread, the bdev just found; the array has an entry
        // for each type and is read before the call returns; the callback takes
        // the argument back, once.
        unsafe {
            sys::opi_bdev_set_qos_limits(bdev.as_ptr(), by_type.as_mut_ptr(), callback, argument);
        }
        0
    })
    .await?;
    check(OPERATION, status).map_err(|error| error.with_detail(format!("{name:?}")))
}

thread_local! {
    /// Bdevs without limits for a moment, and how many changes need that; see [`Lifted`].
    static LIFTED: RefCell<HashMap<String, u32>> = RefCell::default();
}

/// Sets the rate limits of a bdev, unless it has them, or is without limits for a moment or for the stop.
///
/// ENODEV if there is no bdev of that name, and the errors of [`set`].
pub async fn ensure(spdk: Spdk, name: &str, limits: Limits) -> Result<(), Error> {
    let has = get(spdk, name)?;
    let none = Limits::default();
    let is_lifted = LIFTED.with_borrow(|lifted| lifted.contains_key(&own_name(spdk, name)));
    if has == limits || (has == none && (is_lifted || stopping::has_begun(spdk))) {
        return Ok(());
    }
    set(spdk, name, limits).await
}

/// The name of a bdev that is given by one of its names.
fn own_name(spdk: Spdk, name: &str) -> String {
    let found = super::own_name(spdk, name).ok().flatten();
    found.unwrap_or_else(|| name.to_owned())
}

/// While this exists, [`ensure`] sets no limits of the bdev: I/O that they hold back is being drained.
pub(crate) struct Lifted(String);

impl Lifted {
    /// Notes that a bdev is without limits for a moment.
    pub(crate) fn note(spdk: Spdk, name: &str) -> Self {
        let name = own_name(spdk, name);
        LIFTED.with_borrow_mut(|lifted| {
            let changes = lifted.entry(name.clone()).or_default();
            *changes = changes.saturating_add(1);
        });
        Self(name)
    }
}

impl Drop for Lifted {
    fn drop(&mut self) {
        LIFTED.with_borrow_mut(|lifted| {
            if let Some(changes) = lifted.get_mut(&self.0) {
                *changes = changes.saturating_sub(1);
            }
            lifted.retain(|_, changes| *changes > 0);
        });
    }
}

/// Returns the rate limits of a bdev. ENODEV if there is no bdev of that name.
pub fn get(spdk: Spdk, name: &str) -> Result<Limits, Error> {
    let bdev = existing(spdk, "look up rate limits", name)?;
    let mut by_type = [0; TYPES];
    // SAFETY: runs on the app thread; the bdev was found without an await since; the array has an entry for each
    // type.
    unsafe { sys::spdk_bdev_get_qos_rate_limits(bdev.as_ptr(), by_type.as_mut_ptr()) };
    let limit = |index: sys::spdk_bdev_qos_rate_limit_type| by_type[index as usize];
    Ok(Limits {
        rw_iops: limit(sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_RW_IOPS_RATE_LIMIT),
        rw_mib: limit(sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_RW_BPS_RATE_LIMIT),
        read_mib: limit(sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_R_BPS_RATE_LIMIT),
        write_mib: limit(sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_W_BPS_RATE_LIMIT),
    })
}

/// Removes all rate limits during teardown, so that I/O in flight completes before SPDK stops.
pub(crate) async fn lift_all(spdk: Spdk) {
    for name in names(spdk) {
        let none = Limits::default();
        let is_limited = get(spdk, &name).is_ok_and(|limits| limits != none);
        if is_limited && let Err(error) = set(spdk, &name, none).await {
            // Not retried: the stop has its own timeout.
            log::note(
                sys::spdk_log_level_SPDK_LOG_WARN,
                format!("bdev {name:?} keeps its rate limits: {error}"),
            );
        }
    }
}

/// How long a change of limits is waited for: it goes through the reactors once.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);

const TYPES: usize = sys::spdk_bdev_qos_rate_limit_type_SPDK_BDEV_QOS_NUM_RATE_LIMIT_TYPES as usize;
