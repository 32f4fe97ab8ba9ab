//! vhost-user: validates messages, memory tables, rings and descriptor chains of a virtual machine.
//!
//! ```text
//! bytes, fds ─► message ─► frontend (validity in the current state) ─► memory, ring, inflight ─► worker
//! ring ─► chain (each descriptor copied once) ─► blk, scsi
//! ```
//!
//! Two parties are untrusted: the client of the socket (QEMU, or whoever may open the socket), which sends messages,
//! fds and files, and the guest's driver, which writes rings. Sources: the vhost-user specification (QEMU's
//! docs/interop/vhost-user.rst) and virtio 1.2.

pub mod blk;
pub mod chain;
pub mod frontend;
pub mod inflight;
pub mod memory;
pub mod message;
pub mod ring;
pub mod room;
pub mod scsi;
#[cfg(test)]
mod tests;
pub mod turn;

use core::fmt;

/// The most entries of one ring.
pub const MAX_RING_SIZE: u16 = 1024;

/// The most entries of all rings of a device; each costs memory.
pub const MAX_RING_ENTRIES: u32 = 32_768;

/// The most rings of a device.
pub const MAX_RINGS: usize = 128;

/// Virtio and vhost feature bits common to all devices.
pub mod feature {
    /// Writes to guest memory are logged, for live migration.
    pub const LOG_ALL: u64 = 1 << 26;
    /// A request's parts may be split over descriptors in any way.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Indirect descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Interrupts and kicks are suppressed by event indexes.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// Protocol features can be negotiated.
    pub const PROTOCOL: u64 = 1 << 30;
    /// Virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// The features offered for every device.
    pub const CORE: u64 = LOG_ALL | ANY_LAYOUT | INDIRECT | EVENT_INDEX | PROTOCOL | VERSION_1;
}

/// Protocol feature bits.
pub mod protocol {
    /// Multiple queues.
    pub const MULTI_QUEUE: u64 = 1 << 0;
    /// The dirty log is shared memory of a file.
    pub const LOG_FILE: u64 = 1 << 1;
    /// Messages can request an acknowledgement.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// A channel for backend requests to the client.
    pub const BACKEND_REQUESTS: u64 = 1 << 5;
    /// The configuration space is accessed by messages.
    pub const CONFIG: u64 = 1 << 9;
    /// Requests in flight are recorded in a file of the client.
    pub const INFLIGHT: u64 = 1 << 12;
    /// The protocol features offered for every device.
    pub const CORE: u64 = MULTI_QUEUE | LOG_FILE | REPLY_ACK | BACKEND_REQUESTS | CONFIG | INFLIGHT;
}

/// A protocol violation by a client or a driver. The text says what would be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What was wrong, and what would be right.
    pub what: &'static str,
    /// The invalid value.
    pub value: u64,
}

impl Fault {
    /// Creates a fault with the invalid value.
    pub const fn new(what: &'static str, value: u64) -> Self {
        Self { what, value }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (value {:#x})", self.what, self.value)
    }
}

impl core::error::Error for Fault {}

/// Decodes a little-endian number; 0 beyond the end of `bytes`, so callers check lengths first.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[inline]
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let end = at.saturating_add(N);
    bytes
        .get(at..end)
        .and_then(|part| part.try_into().ok())
        .unwrap_or([0; N])
}
