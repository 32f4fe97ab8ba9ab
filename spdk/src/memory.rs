//! SPDK's memory: DPDK's heaps, from which malloc volumes, connections, queues and buffers are allocated; and the
//! machine's.

use spdk_sys as sys;

use crate::app_thread::Spdk;

/// Memory totals in bytes, over all NUMA nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All memory.
    pub bytes: u64,
    /// Free memory.
    pub free: u64,
    /// The largest free piece: an upper bound for one allocation.
    pub largest_free: u64,
}

/// Reads the totals. App thread; takes about a microsecond with some dozens of free pieces.
pub fn memory(_: Spdk) -> Memory {
    read()
}

/// As [`memory`]. Any thread of SPDK.
pub(crate) fn read() -> Memory {
    let mut of = sys::opi_memory {
        bytes: 0,
        free: 0,
        largest_free: 0,
    };
    // SAFETY: writes to `of` alone. DPDK takes its own locks to read its heaps, which exist as long as SPDK's threads,
    // on one of which this runs.
    unsafe { sys::opi_memory_read(&raw mut of) };
    Memory {
        bytes: of.bytes,
        free: of.free,
        largest_free: of.largest_free,
    }
}

/// Returns the machine's memory, in bytes.
pub(crate) fn of_the_machine() -> u64 {
    // SAFETY: sysconf only reads system parameters.
    let (pages, bytes) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    let positive = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
    positive(pages).saturating_mul(positive(bytes))
}
