//! The counters of all bdevs, read a few bdevs a step: I/O never waits for more than that.

use std::ffi::{CStr, c_int, c_void};
use std::time::Duration;

use spdk_sys as sys;

use crate::completion::{Pending, Promise, completion};
use crate::error::{Error, check};
use crate::runtime::Spdk;

use super::descriptor::Descriptor;
use super::errors::IoErrors;
use super::histogram::{self, Latencies};

/// I/O of a bdev since it was made. Times are sums over all operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field says it")]
pub struct Counters {
    /// The bdev's name.
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
    /// Operations that the device has failed.
    pub errors: IoErrors,
    /// I/O by its latency; `None` where it was not asked for.
    pub latencies: Option<Latencies>,
}

/// A bdev that is open: it stays in SPDK's list, and so does its place there.
pub(super) struct Open(Descriptor);

impl Open {
    /// `None` if the bdev is being removed.
    ///
    /// # Safety
    /// On the app thread; `bdev` is in SPDK's list.
    unsafe fn new(spdk: Spdk, bdev: *mut sys::spdk_bdev) -> Option<Self> {
        // SAFETY: the caller's contract; the name is the bdev's own.
        let name = unsafe { CStr::from_ptr(sys::spdk_bdev_get_name(bdev)) };
        Descriptor::open(spdk, "open bdev", name).ok().map(Self)
    }

    fn bdev(&self) -> *mut sys::spdk_bdev {
        self.0.bdev()
    }

    /// The first that can be opened after this one, or of all.
    pub(super) fn next(spdk: Spdk, before: Option<&Self>) -> Option<Self> {
        // SAFETY: on the app thread, which alone removes bdevs from the list: one that is open stays in
        // it, and the others do while nothing is awaited.
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

    /// The bdev's name.
    pub(super) fn name(&self) -> String {
        // SAFETY: the bdev is open, and the name its own.
        let name = unsafe { CStr::from_ptr(sys::spdk_bdev_get_name(self.bdev())) };
        name.to_string_lossy().into_owned()
    }

    /// I/O that its device has failed.
    pub(super) fn errors(&self) -> IoErrors {
        let mut errors = sys::opi_bdev_errors {
            read: 0,
            write: 0,
            flush: 0,
            other: 0,
        };
        // SAFETY: on the app thread, where `Open` stays; the bdev is open, and the output outlives the call.
        unsafe { sys::opi_bdev_read_errors(self.bdev(), &mut errors) };
        IoErrors::of(&errors)
    }

    /// Has SPDK read the counters.
    fn begin(&self) -> Pending<(Counters, c_int)> {
        let (promise, pending) = completion();
        // SAFETY: on the app thread, where `Open` is made and stays. SPDK's walk over the bdev's channels keeps the
        // bdev registered until the callback, which always comes and takes the promise back.
        unsafe { sys::opi_bdev_read_counters(self.bdev(), Some(on_counters), promise.into_raw()) };
        pending
    }

    /// What has been read.
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

/// How many bdevs one step opens and asks for; and of those whose latencies are read, each with hundreds of buckets.
const AT_ONCE: usize = 8;
const AT_ONCE_WITH_LATENCIES: usize = 2;

/// How many bdevs a survey tells of; the others are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// With counters.
    pub counters: usize,
    /// Of these, with latencies too.
    pub latencies: usize,
}

/// The counters of all bdevs, or of as many as `most`, by the steps that read them: one list of thousands would be
/// copied at once when it grows. And how many are left out.
///
/// # Errors
/// SPDK has no memory for it.
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
        // The reactors are asked for all of them before the first answer is waited for.
        let counters: Vec<_> = opened.iter().take(read).map(Open::begin).collect();
        let latencies = opened.iter().take(with_latencies);
        // SAFETY: on the app thread; all that are opened stay so until the end of this turn.
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
    // SAFETY: what `read` handed out; SPDK calls once, on the app thread; `stat` and `errors` are null or
    // valid for the call.
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
        // SAFETY: reads two numbers of a structure that is there.
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
