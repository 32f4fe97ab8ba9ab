//! Reads the counters of all bdevs, a few bdevs per step, which bounds the delay of I/O.

use std::ffi::{CStr, c_int, c_void};
use std::time::Duration;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::completion::{Pending, Promise, completion};
use crate::error::{Error, check};

use super::descriptor::Descriptor;
use super::errors::IoErrors;
use super::histogram::{self, Latencies};

/// I/O of a bdev since its creation. Times are sums over all operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field says it")]
pub struct Counters {
    /// Name of the bdev.
    pub name: String,
    pub size_bytes: u64,
    pub read_bytes: u64,
    pub read_ops: u64,
    pub read_time: Duration,
    pub write_bytes: u64,
    pub write_ops: u64,
    pub write_time: Duration,
    pub unmap_bytes: u64,
    pub unmap_ops: u64,
    pub unmap_time: Duration,
    pub flush_ops: u64,
    pub flush_time: Duration,
    /// Operations that the device failed.
    pub errors: IoErrors,
    /// I/O by latency; `None` if not requested.
    pub latencies: Option<Latencies>,
}

/// An open bdev: it keeps its place in SPDK's list while it is open.
pub(super) struct Open(Descriptor);

impl Open {
    /// Opens a bdev; `None` if the bdev is being removed.
    ///
    /// # Safety
    /// Runs on the app thread; `bdev` is in SPDK's list.
    unsafe fn new(spdk: Spdk, bdev: *mut sys::spdk_bdev) -> Option<Self> {
        // SAFETY: by the caller's contract `bdev` is valid, and its NUL-terminated name lives as long as it.
        let name = unsafe { CStr::from_ptr(sys::spdk_bdev_get_name(bdev)) };
        Descriptor::open(spdk, "open bdev", name).ok().map(Self)
    }

    fn bdev(&self) -> *mut sys::spdk_bdev {
        self.0.bdev()
    }

    /// Opens the next bdev after `before` (the first one if `None`) that is not being removed.
    pub(super) fn next(spdk: Spdk, before: Option<&Self>) -> Option<Self> {
        // SAFETY: runs on the app thread, which alone removes bdevs from the list. An open bdev stays in the list,
        // and the others do so because nothing is awaited in between.
        unsafe {
            let mut bdev = match before {
                None => sys::spdk_bdev_first(),
                Some(open) => sys::spdk_bdev_next(open.bdev()),
            };
            while !bdev.is_null() {
                if let Some(open) = Self::new(spdk, bdev) {
                    return Some(open);
                }
                bdev = sys::spdk_bdev_next(bdev);
            }
        }
        None
    }

    /// Returns the bdev's name.
    pub(super) fn name(&self) -> String {
        // SAFETY: the bdev is open, and its NUL-terminated name lives as long as it.
        let name = unsafe { CStr::from_ptr(sys::spdk_bdev_get_name(self.bdev())) };
        name.to_string_lossy().into_owned()
    }

    /// Returns the I/O that the device failed.
    pub(super) fn errors(&self) -> IoErrors {
        let mut errors = sys::opi_bdev_errors {
            read: 0,
            write: 0,
            flush: 0,
            other: 0,
        };
        // SAFETY: runs on the app thread, which `Open` cannot leave; the bdev is open, and the output outlives the
        // call.
        unsafe { sys::opi_bdev_read_errors(self.bdev(), &mut errors) };
        IoErrors::of(&errors)
    }

    /// Starts reading the counters.
    fn begin(&self) -> Pending<(Counters, c_int)> {
        let (promise, pending) = completion();
        // SAFETY: runs on the app thread, where `Open` is created and stays. SPDK's walk over the bdev's channels
        // keeps the bdev registered until the callback, which is always called and takes the promise back, once.
        unsafe { sys::opi_bdev_read_counters(self.bdev(), Some(on_counters), promise.into_raw()) };
        pending
    }

    /// Awaits the reading.
    async fn end(&self, pending: Pending<(Counters, c_int)>) -> Result<Counters, Error> {
        let (mut counters, status): (Counters, c_int) = pending.await?;
        check("read bdev counters", status)?;
        let bdev = self.bdev();
        counters.name = self.name();
        // SAFETY: the bdev is open.
        unsafe {
            let blocks = sys::spdk_bdev_get_num_blocks(bdev);
            let block_size = u64::from(sys::spdk_bdev_get_block_size(bdev));
            counters.size_bytes = blocks.saturating_mul(block_size);
        }
        Ok(counters)
    }
}

/// Bdevs opened and queried per step, without and with latencies: each of the latter has hundreds of buckets.
const AT_ONCE: usize = 8;
const AT_ONCE_WITH_LATENCIES: usize = 2;

/// How many bdevs a survey reports; the rest is only counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Bdevs with counters.
    pub counters: usize,
    /// Of these, bdevs that also have latencies.
    pub latencies: usize,
}

/// Reads the counters of all bdevs, `most` at most, grouped by the steps that read them: a single list of thousands
/// would be copied at once when it grows. Also returns how many bdevs were left out.
///
/// # Errors
/// SPDK is out of memory.
pub async fn survey(spdk: Spdk, most: Most) -> Result<(Vec<Vec<Counters>>, u64), Error> {
    let (mut all, mut told, mut left_out) = (Vec::new(), 0_usize, 0);
    let mut next = Open::next(spdk, None);
    while let Some(first) = next {
        let at_once = match told < most.latencies {
            true => AT_ONCE_WITH_LATENCIES,
            false => AT_ONCE,
        };
        let mut opened = Vec::with_capacity(at_once);
        opened.push(first);
        while opened.len() < at_once
            && let Some(bdev) = Open::next(spdk, opened.last())
        {
            opened.push(bdev);
        }
        let read = opened.len().min(most.counters.saturating_sub(told));
        let with_latencies = read.min(most.latencies.saturating_sub(told));
        left_out += (opened.len() - read) as u64;
        // All queries of a step are started before the first result is awaited.
        let counters: Vec<_> = opened.iter().take(read).map(Open::begin).collect();
        let latencies = opened.iter().take(with_latencies);
        // SAFETY: runs on the app thread; everything in `opened` stays open until the end of this iteration, after
        // `end`.
        let mut latencies = latencies
            .map(|of| unsafe { histogram::begin(of.bdev()) })
            .collect::<Vec<_>>()
            .into_iter();
        if counters.is_empty() {
            spdk_control::executor::yield_now().await;
        }
        told = told.saturating_add(read);
        let mut of_step = Vec::with_capacity(read);
        for (bdev, counters) in opened.iter().zip(counters) {
            let mut counters = bdev.end(counters).await?;
            if let Some(latencies) = latencies.next() {
                counters.latencies = Some(histogram::end(latencies).await?);
            }
            of_step.push(counters);
        }
        all.push(of_step);
        next = Open::next(spdk, opened.last());
    }
    Ok((all, left_out))
}

unsafe extern "C" fn on_counters(
    argument: *mut c_void,
    stat: *const sys::spdk_bdev_io_stat,
    errors: *const sys::opi_bdev_errors,
    status: c_int,
) {
    // SAFETY: `argument` comes from `into_raw` in `begin`; called once, on the app thread; `stat` and `errors` are
    // null or valid during the call.
    let (promise, stat, errors) = unsafe {
        (
            Promise::<(Counters, c_int)>::from_raw(argument),
            stat.as_ref(),
            errors.as_ref(),
        )
    };
    let errors = errors.map(IoErrors::of).unwrap_or_default();
    let counters = stat.map(|stat| Counters::of(stat, errors));
    promise.complete((counters.unwrap_or_default(), status));
}

impl Counters {
    fn of(stat: &sys::spdk_bdev_io_stat, errors: IoErrors) -> Self {
        // SAFETY: reads two fields of a valid struct.
        let flushes = unsafe { sys::opi_bdev_flushes_of(stat) };
        Self {
            name: String::new(),
            size_bytes: 0,
            read_bytes: stat.bytes_read,
            read_ops: stat.num_read_ops,
            read_time: crate::reactors::duration(stat.read_latency_ticks),
            write_bytes: stat.bytes_written,
            write_ops: stat.num_write_ops,
            write_time: crate::reactors::duration(stat.write_latency_ticks),
            unmap_bytes: stat.bytes_unmapped,
            unmap_ops: stat.num_unmap_ops,
            unmap_time: crate::reactors::duration(stat.unmap_latency_ticks),
            flush_ops: flushes.number,
            flush_time: crate::reactors::duration(flushes.ticks),
            errors,
            latencies: None,
        }
    }
}
