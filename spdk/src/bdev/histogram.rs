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

/// What a reading ends with: the buckets, and SPDK's status.
type Read = (Vec<(Duration, u64)>, c_int);

/// The state passed through C: the buckets reported so far.
struct Reading {
    buckets: Vec<(Duration, u64)>,
    promise: Promise<Read>,
}

/// A reading in progress.
pub(super) type Pending = crate::completion::Pending<Read>;

/// Room for the non-empty buckets of most volumes, so that a reading allocates once: there are four for each doubling of
/// the latency.
const USUAL_BUCKETS: usize = 32;

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
    Ok(match status {
        0 => Latencies(buckets),
        _ => Latencies::default(),
    })
}

unsafe extern "C" fn on_bucket(argument: *mut c_void, end: u64, count: u64) {
    // SAFETY: `argument` is the box from `begin`, which nobody else accesses until `on_done`.
    let reading = unsafe { &mut *argument.cast::<Reading>() };
    if reading.buckets.is_empty() {
        reading.buckets.reserve(USUAL_BUCKETS);
    }
    let end = crate::reactors::duration(end);
    reading.buckets.push((end, count));
}

unsafe extern "C" fn on_done(argument: *mut c_void, status: c_int) {
    // SAFETY: `argument` is the box from `begin`; called once, last, on the app thread.
    let Reading { buckets, promise } = *unsafe { Box::from_raw(argument.cast::<Reading>()) };
    promise.complete((buckets, status));
}
