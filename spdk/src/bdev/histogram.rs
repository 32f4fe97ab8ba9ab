//! How long a bdev's I/O took: a histogram that SPDK keeps for each channel, read as a whole.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use spdk_sys as sys;

use crate::completion::{Promise, completion};
use crate::error::Error;

/// I/O of a bdev by its latency, since the histogram was first read, which switches it on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latencies(
    /// The buckets that are not empty: up to which latency, and how much I/O. In their order.
    pub Vec<(Duration, u64)>,
);

/// What goes through C: the buckets told so far.
struct Reading {
    buckets: Vec<(u64, u64)>,
    promise: Promise<(Vec<(u64, u64)>, c_int)>,
}

/// What a reading will bring.
pub(super) type Pending = crate::completion::Pending<(Vec<(u64, u64)>, c_int)>;

/// Has SPDK read the latencies of a bdev.
///
/// # Safety
/// On the app thread; `bdev` is open until [`end`] returns.
pub(super) unsafe fn begin(bdev: *mut sys::spdk_bdev) -> Pending {
    let (promise, pending) = completion();
    let reading = Box::into_raw(Box::new(Reading {
        buckets: Vec::new(),
        promise,
    }));
    // SAFETY: the caller's contract; `reading` stays until `on_done`, which always comes, last.
    unsafe {
        sys::opi_bdev_read_histogram(bdev, Some(on_bucket), Some(on_done), reading.cast());
    }
    pending
}

/// What has been read; nothing if SPDK has no memory to count latencies.
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
    // SAFETY: what `begin` passed, which nobody else has until `on_done`.
    let reading = unsafe { &mut *argument.cast::<Reading>() };
    reading.buckets.push((end, count));
}

unsafe extern "C" fn on_done(argument: *mut c_void, status: c_int) {
    // SAFETY: as above; called once, last, on the app thread.
    let Reading { buckets, promise } = *unsafe { Box::from_raw(argument.cast::<Reading>()) };
    promise.complete((buckets, status));
}
