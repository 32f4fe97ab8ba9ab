//! I/O counters of a bdev, summed over its channels on all reactors.

use std::ffi::{c_int, c_void};

use spdk_sys as sys;

use super::descriptor::Descriptor;
use crate::app_thread::Spdk;
use crate::completion::{Promise, completion};
use crate::cstr::cstr;
use crate::error::{Error, check};

/// I/O since the bdev's creation. Latencies are sums over all operations, in ticks of 1/`ticks_per_second` seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field says it")]
pub struct Stats {
    pub read_bytes: u64,
    pub read_ops: u64,
    pub write_bytes: u64,
    pub write_ops: u64,
    pub unmap_bytes: u64,
    pub unmap_ops: u64,
    pub read_latency_ticks: u64,
    pub write_latency_ticks: u64,
    pub unmap_latency_ticks: u64,
    pub ticks_per_second: u64,
}

impl Stats {
    pub(super) fn of(counters: &sys::spdk_bdev_io_stat) -> Self {
        Self {
            read_bytes: counters.bytes_read,
            read_ops: counters.num_read_ops,
            write_bytes: counters.bytes_written,
            write_ops: counters.num_write_ops,
            unmap_bytes: counters.bytes_unmapped,
            unmap_ops: counters.num_unmap_ops,
            read_latency_ticks: counters.read_latency_ticks,
            write_latency_ticks: counters.write_latency_ticks,
            unmap_latency_ticks: counters.unmap_latency_ticks,
            // SAFETY: reads a value that is constant once SPDK runs.
            ticks_per_second: unsafe { sys::spdk_get_ticks_hz() },
        }
    }

    /// Adds another bdev's counters.
    pub fn add(&mut self, other: &Self) {
        self.read_bytes += other.read_bytes;
        self.read_ops += other.read_ops;
        self.write_bytes += other.write_bytes;
        self.write_ops += other.write_ops;
        self.unmap_bytes += other.unmap_bytes;
        self.unmap_ops += other.unmap_ops;
        self.read_latency_ticks += other.read_latency_ticks;
        self.write_latency_ticks += other.write_latency_ticks;
        self.unmap_latency_ticks += other.unmap_latency_ticks;
    }
}

/// Owned by C while the reactors are queried one after another. The open descriptor keeps the bdev alive meanwhile.
struct Query {
    counters: sys::spdk_bdev_io_stat,
    descriptor: Descriptor,
    promise: Promise<(Stats, c_int)>,
}

/// Reads the counters of a bdev. ENODEV if there is no bdev of that name.
pub async fn stats(spdk: Spdk, name: &str) -> Result<Stats, Error> {
    const OPERATION: &str = "read bdev statistics";
    let opened = Descriptor::open(spdk, OPERATION, &cstr("bdev name", name)?);
    let descriptor = opened.map_err(|error| error.with_detail(format!("bdev {name:?}")))?;
    let bdev = descriptor.bdev();
    let (promise, pending) = completion();
    let query = Box::into_raw(Box::new(Query {
        // SAFETY: a C struct of integers and a nullable pointer, for which all zero is valid.
        counters: unsafe { std::mem::zeroed() },
        descriptor,
        promise,
    }));
    // SAFETY: runs on the app thread; the descriptor stays open, and `query` allocated, until `on_counters`, which
    // is always called.
    unsafe {
        sys::spdk_bdev_get_device_stat(
            bdev,
            &raw mut (*query).counters,
            sys::spdk_bdev_reset_stat_mode_SPDK_BDEV_RESET_STAT_NONE,
            Some(on_counters),
            query.cast(),
        );
    }
    let (stats, status) = pending.await?;
    check(OPERATION, status)?;
    Ok(stats)
}

unsafe extern "C" fn on_counters(
    _: *mut sys::spdk_bdev,
    _: *mut sys::spdk_bdev_io_stat,
    argument: *mut c_void,
    status: c_int,
) {
    // SAFETY: `argument` is the box that `stats` passed; SPDK calls back once, on the app thread.
    let query = unsafe { Box::from_raw(argument.cast::<Query>()) };
    let Query {
        counters,
        descriptor,
        promise,
    } = *query;
    drop(descriptor);
    promise.complete((Stats::of(&counters), status));
}
