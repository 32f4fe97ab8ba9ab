//! Address space for what clients share: guest memory, dirty logs, inflight areas. A sparse file claims any size at no
//! cost to its owner, while each mapping takes address space and page tables of this process, which all devices share.

use core::sync::atomic::{AtomicU64, Ordering};

use super::Fault;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// The most bytes mapped for all devices: half of the 47 address bits that a process has.
pub const ALL: u64 = 64 * TIB;

/// The most bytes of one memory table on a machine with this much memory.
///
/// Four times the machine's memory leaves room for memory that is overcommitted, or can be plugged later (virtio-mem
/// shares all of it at once), as long as that is at most 2 TiB. Memory for DMA is pinned, so the machine must have it.
pub const fn table_limit(machine: u64, dma: bool) -> u64 {
    if dma || machine > 2 * TIB {
        return machine;
    }
    let wide = machine.saturating_mul(4);
    if wide > 2 * TIB {
        2 * TIB
    } else if wide < 64 * GIB {
        64 * GIB
    } else {
        wide
    }
}

/// The most bytes mapped for one device: a memory table, the one that it replaces, and smaller areas.
pub const fn device_limit(machine: u64) -> u64 {
    table_limit(machine, false)
        .saturating_mul(2)
        .saturating_add(64 * GIB)
}

/// Checks the size of a memory table, in bytes.
///
/// # Errors
/// The table has more than [`table_limit`].
pub const fn check_table(bytes: u64, machine: u64, dma: bool) -> Result<(), Fault> {
    if bytes <= table_limit(machine, dma) {
        return Ok(());
    }
    Err(Fault::new(
        if dma {
            "guest memory for DMA may have as many bytes as the machine"
        } else {
            "guest memory may have 4 times the bytes of the machine, within 64 GiB to 2 TiB, or as many"
        },
        bytes,
    ))
}

/// A count of mapped bytes with a limit. Any thread.
#[derive(Debug)]
pub struct Room {
    limit: u64,
    taken: AtomicU64,
}

impl Room {
    /// Creates an empty room for `limit` bytes.
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            taken: AtomicU64::new(0),
        }
    }

    /// Returns whether there is room for this many bytes now.
    pub fn has(&self, bytes: u64) -> bool {
        self.taken
            .load(Ordering::Acquire)
            .checked_add(bytes)
            .is_some_and(|sum| sum <= self.limit)
    }

    /// Takes bytes, all or none. Returns whether there was room.
    pub fn take(&self, bytes: u64) -> bool {
        let add = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
            .is_ok()
    }

    /// Gives back bytes that were taken.
    pub fn give(&self, bytes: u64) {
        let subtract = |taken: u64| Some(taken.saturating_sub(bytes));
        let _ = self
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, subtract);
    }
}

/// Takes bytes from the room of a device and from that of all devices, both or neither.
///
/// # Errors
/// One of them has no room.
pub fn take_both(device: &Room, all: &Room, bytes: u64) -> Result<(), Fault> {
    if !device.take(bytes) {
        return Err(Fault::new(
            "a vhost-user device may map two memory tables and 64 GiB",
            bytes,
        ));
    }
    if !all.take(bytes) {
        device.give(bytes);
        return Err(Fault::new(
            "all vhost-user devices together may map 64 TiB",
            bytes,
        ));
    }
    Ok(())
}
