//! Split rings: the location of their parts, and index arithmetic.

use super::memory::{Mapped, by_user};
use super::{Fault, MAX_RING_SIZE};

/// Addresses of a ring's parts in the client, and how writes to it are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Bit 0: writes to the used ring are logged.
    pub flags: u32,
    /// Descriptor table.
    pub descriptors: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub available: u64,
    /// Guest-physical address of the used ring, for the log.
    pub log: u64,
}

impl Addresses {
    /// Returns whether the parts are at the same addresses; logging may differ.
    pub fn same_places(&self, other: &Self) -> bool {
        (self.descriptors, self.used, self.available)
            == (other.descriptors, other.used, other.available)
    }
}

/// Addresses of a ring's parts in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// `size` descriptors of 16 bytes.
    pub descriptors: usize,
    /// Flags, index, `size` entries of 2 bytes, used event.
    pub available: usize,
    /// Flags, index, `size` entries of 8 bytes, available event.
    pub used: usize,
}

/// Validates a ring's size: a power of two, up to [`MAX_RING_SIZE`].
///
/// # Errors
/// Any other size.
pub fn check_size(size: u32) -> Result<u16, Fault> {
    match u16::try_from(size) {
        Ok(size) if size.is_power_of_two() && size <= MAX_RING_SIZE => Ok(size),
        _ => Err(Fault::new(
            "a ring's size must be a power of two, 1024 at most",
            size.into(),
        )),
    }
}

/// Translates a ring's parts to mapped memory: each contiguous in one region, and aligned.
///
/// # Errors
/// Names the part that is not.
pub fn locate(regions: &[Mapped], size: u16, addresses: &Addresses) -> Result<Places, Fault> {
    let size = u64::from(size);
    let part = |what, address, entry: u64, fixed: u64, align: usize| {
        let length = size.saturating_mul(entry).saturating_add(fixed);
        by_user(regions, address, length)
            .filter(|host| host.is_multiple_of(align))
            .ok_or(Fault::new(what, address))
    };
    Ok(Places {
        descriptors: part(
            "the descriptors must lie in one region, aligned to 16 bytes",
            addresses.descriptors,
            16,
            0,
            16,
        )?,
        available: part(
            "the available ring must lie in one region, aligned to 2 bytes",
            addresses.available,
            2,
            6,
            2,
        )?,
        used: part(
            "the used ring must lie in one region, aligned to 4 bytes",
            addresses.used,
            8,
            6,
            4,
        )?,
    })
}

/// Returns how many requests are available; `None` if the index is further ahead than the ring's size.
#[inline]
pub fn available(index: u16, taken: u16, size: u16) -> Option<u16> {
    let count = index.wrapping_sub(taken);
    (count <= size).then_some(count)
}

/// Returns whether the other side's event index asks for a notification between `old` and `new` (virtio 1.2,
/// 2.7.10).
#[inline]
pub const fn wants_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
