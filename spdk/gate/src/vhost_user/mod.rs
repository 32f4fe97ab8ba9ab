//! vhost-user: messages, memory tables, rings and descriptor chains of a virtual machine.
//!
//! ```text
//! bytes, fds ─► message ─► frontend (what is allowed now) ─► memory, ring, inflight ─► worker
//! ring ─► chain (each descriptor copied once) ─► blk, scsi
//! ```
//!
//! Two parties are outside: the client of the socket (QEMU, or whoever may open it), which sends
//! messages, fds and files, and the guest's driver, which writes rings. Neither is trusted. Sources:
//! the vhost-user specification (QEMU's docs/interop/vhost-user.rst) and virtio 1.2.

pub mod blk;
pub mod chain;
pub mod frontend;
pub mod inflight;
pub mod memory;
pub mod message;
pub mod ring;
pub mod scsi;
#[cfg(test)]
mod tests;

use core::fmt;

/// Most entries of one ring.
pub const MAX_RING_SIZE: u16 = 1024;

/// Most entries of all rings of a device: each costs memory.
pub const MAX_RING_ENTRIES: u32 = 32_768;

/// Most rings of a device.
pub const MAX_RINGS: usize = 128;

/// Virtio and vhost feature bits of the core.
pub mod feature {
    /// All writes to guest memory are logged, for live migration.
    pub const LOG_ALL: u64 = 1 << 26;
    /// Requests may be laid out in descriptors in any way.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Descriptors may refer to tables of descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Interrupts and kicks are asked for by index.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// Protocol features can be negotiated.
    pub const PROTOCOL: u64 = 1 << 30;
    /// Virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// What the core offers for every device.
    pub const CORE: u64 = LOG_ALL | ANY_LAYOUT | INDIRECT | EVENT_INDEX | PROTOCOL | VERSION_1;
}

/// Protocol feature bits.
pub mod protocol {
    /// More than one queue.
    pub const MULTI_QUEUE: u64 = 1 << 0;
    /// The dirty log is a file.
    pub const LOG_FILE: u64 = 1 << 1;
    /// A message can ask for an acknowledgement.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// A channel for requests to the client.
    pub const BACKEND_REQUESTS: u64 = 1 << 5;
    /// The configuration space is read and written by messages.
    pub const CONFIG: u64 = 1 << 9;
    /// Requests in flight are noted in a file of the client.
    pub const INFLIGHT: u64 = 1 << 12;
    /// What the core offers.
    pub const CORE: u64 = MULTI_QUEUE | LOG_FILE | REPLY_ACK | BACKEND_REQUESTS | CONFIG | INFLIGHT;
}

/// What a client or a driver did that is not allowed. The text says what would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What was wrong, and what would be right.
    pub what: &'static str,
    /// The value that was wrong.
    pub value: u64,
}

impl Fault {
    /// A fault with the value that was wrong.
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

/// Little-endian numbers out of bytes; 0 behind their end, so lengths are checked before.
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
