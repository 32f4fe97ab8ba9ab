//! SPDK's memory: DPDK's heaps, of which malloc volumes, connections, queues and buffers are taken.

use spdk_sys as sys;

use crate::runtime::Spdk;

/// How much of it there is, in bytes, on all NUMA nodes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub bytes: u64,
    /// What nobody has.
    pub free: u64,
    /// The largest piece of that: nothing larger can be had.
    pub largest_free: u64,
}

/// Reads it. On the app thread; takes a microsecond for some dozens of free pieces.
pub fn memory(_: Spdk) -> Memory {
    let mut of = sys::opi_memory {
        bytes: 0,
        free: 0,
        largest_free: 0,
    };
    // SAFETY: writes to `of` alone. Reads DPDK's heaps, which it locks itself; they are there as long as
    // there is an app thread, on which this runs.
    unsafe { sys::opi_memory_read(&raw mut of) };
    Memory {
        bytes: of.bytes,
        free: of.free,
        largest_free: of.largest_free,
    }
}
