//! Latency histograms of bdevs, which SPDK keeps per channel, read as their sum.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use spdk_sys as sys;

use crate::completion::{Promise, completion};
use crate::error::Error;

/// A bdev's I/O by latency, since the first reading of its histogram, which enables it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latencies(
    /// The non-empty buckets in ascending order: upper bound of the latency, and number of I/Os.
    pub Vec<(Duration, u64)>,
);

/// The state passed through C: the buckets reported so far.
struct Reading {
    buckets: Vec<(u64, u64)>,
    promise: Promise<(Vec<(u64, u64)>, c_int)>,
}

/// A reading in progress.
pub(super) type Pending = crate::completion::Pending<(Vec<(u64, u64)>, c_int)>;

/// Starts reading a bdev's latencies.
///
/// # Safety
/// Runs on the app thread; `bdev` stays open until [`end`] returns.
pub(super) unsafe fn begin(bdev: *mut sys::spdk_bdev) -> Pending {
    let (promise, pending) = completion();
    let reading = Box::into_raw(Box::new(Reading {
        buckets: Vec::new(),
        promise,
    }));
    // SAFETY: by the caller's contract; `reading` lives until `on_done`, which is always called, last.
    unsafe {
        sys::opi_bdev_read_histogram(bdev, Some(on_bucket), Some(on_done), reading.cast());
    }
    pending
}

/// Awaits the reading; empty if SPDK has no memory to count latencies.
pub(super) async fn end(pending: Pending) -> Result<Latencies, Error> {
    let (buckets, status) = pending.await?;
    if status != 0 {
        return Ok(Latencies::default());
    }
    let buckets = buckets.into_iter();
    Ok(Latencies(
        buckets
            .map(|(end, count)| (crate::reactors::duration(end), count))
            .collect(),
    ))
}

unsafe extern "C" fn on_bucket(argument: *mut c_void, end: u64, count: u64) {
    // SAFETY: `argument` is the box from `begin`, which nobody else accesses until `on_done`.
    let reading = unsafe { &mut *argument.cast::<Reading>() };
    reading.buckets.push((end, count));
}

unsafe extern "C" fn on_done(argument: *mut c_void, status: c_int) {
    // SAFETY: `argument` is the box from `begin`; called once, last, on the app thread.
    let Reading { buckets, promise } = *unsafe { Box::from_raw(argument.cast::<Reading>()) };
    promise.complete((buckets, status));
}
