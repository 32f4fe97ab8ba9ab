//! Parses virtio-blk requests (virtio 1.2, 5.2.6).

use super::{u32_at, u64_at};

/// Bytes of a request's header, before its data.
pub const HEADER: usize = 16;

/// Bytes of a sector, virtio's unit.
pub const SECTOR: u64 = 512;

/// Bytes of the payload of discard and write-zeroes: one range.
pub const RANGE: usize = 16;

/// Bytes of a device's ID.
pub const ID: usize = 20;

/// The most bytes of one read or write, to bound how long other devices of the worker wait. A little more than the
/// segments announced to drivers can hold.
pub const MAX_DATA: u64 = 16 << 20;

/// The most sectors of one discard or write-zeroes: 16 MiB, for the same reason.
pub const MAX_RANGE_SECTORS: u32 = 32_768;

/// Status of a request.
pub mod status {
    /// Success.
    pub const OK: u8 = 0;
    /// I/O error.
    pub const ERROR: u8 = 1;
    /// Unsupported request.
    pub const UNSUPPORTED: u8 = 2;
}

/// Features of a block device.
pub mod feature {
    /// Announces the most bytes of a segment.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// Announces the most segments of a request.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Announces the block size.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Supports flush.
    pub const FLUSH: u64 = 1 << 9;
    /// Announces the physical block size.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// Supports multiple queues.
    pub const MQ: u64 = 1 << 12;
    /// Supports discard.
    pub const DISCARD: u64 = 1 << 13;
    /// Supports write-zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// A parsed request. Ranges are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read: data to the driver.
    Read {
        /// Offset on the disk.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Write: data from the driver.
    Write {
        /// Offset on the disk.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Flush: makes all completed writes durable.
    Flush,
    /// Returns the device's ID.
    Id,
    /// Discards the range in the payload.
    Discard,
    /// Zeroes the range in the payload.
    WriteZeroes,
}

/// Parses a request from its header. `readable` and `writable` are the bytes besides header and status.
///
/// # Errors
/// The status to complete the request with.
#[inline]
pub fn command(header: &[u8; HEADER], readable: u64, writable: u64) -> Result<Command, u8> {
    const BARRIER: u32 = 1 << 31;
    let sector = u64_at(header, 8);
    let range = |length: u64, other: u64| {
        if length == 0 || !length.is_multiple_of(SECTOR) || other != 0 {
            return Err(status::UNSUPPORTED);
        }
        if length > MAX_DATA {
            return Err(status::ERROR);
        }
        let offset = sector.checked_mul(SECTOR).ok_or(status::ERROR)?;
        offset.checked_add(length).ok_or(status::ERROR)?;
        Ok((offset, length))
    };
    match u32_at(header, 0) & !BARRIER {
        0 => range(writable, readable).map(|(offset, length)| Command::Read { offset, length }),
        1 => range(readable, writable).map(|(offset, length)| Command::Write { offset, length }),
        4 if sector == 0 => Ok(Command::Flush),
        4 => Err(status::ERROR),
        8 if writable > 0 => Ok(Command::Id),
        11 if readable == RANGE as u64 => Ok(Command::Discard),
        13 if readable == RANGE as u64 => Ok(Command::WriteZeroes),
        11 | 13 => Err(status::ERROR),
        _ => Err(status::UNSUPPORTED),
    }
}

/// Parses the range of a discard or write-zeroes, in bytes.
///
/// # Errors
/// The status to complete the request with. A discard must not have the unmap flag; other flags are unknown.
pub fn range(payload: &[u8; RANGE], discard: bool) -> Result<(u64, u64), u8> {
    const UNMAP: u32 = 1;
    let allowed = if discard { 0 } else { UNMAP };
    if u32_at(payload, 12) & !allowed != 0 {
        return Err(status::UNSUPPORTED);
    }
    let sectors = u32_at(payload, 8);
    if sectors == 0 || sectors > MAX_RANGE_SECTORS {
        return Err(status::ERROR);
    }
    let length = u64::from(sectors).saturating_mul(SECTOR);
    let offset = u64_at(payload, 0)
        .checked_mul(SECTOR)
        .ok_or(status::ERROR)?;
    offset.checked_add(length).ok_or(status::ERROR)?;
    Ok((offset, length))
}

/// Derives a device's ID, letters and digits, from a volume's UUID. Similar UUIDs give dissimilar IDs. Not
/// injective: there are 36^20 (about 2^103) IDs for 2^128 UUIDs.
pub fn id(uuid: [u8; 16]) -> [u8; ID] {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    // Odd multipliers, so that each step is a bijection of 128-bit values.
    const ODD: [u128; 2] = [
        0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835,
        0xd1b5_4a32_d192_ed03_2ca9_9f3c_8d6b_0a4f,
    ];
    let mut mixed = u128::from_be_bytes(uuid);
    for odd in ODD {
        mixed = (mixed ^ (mixed >> 61)).wrapping_mul(odd);
    }
    mixed ^= mixed >> 64;
    let mut id = [b'0'; ID];
    for place in &mut id {
        let digit = usize::try_from(mixed % 36).unwrap_or_default();
        *place = DIGITS.get(digit).copied().unwrap_or(b'0');
        mixed /= 36;
    }
    id
}

/// The contents of the configuration space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// Bytes of a block; 0 if the volume is missing.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// The most segments of a request.
    pub segments: u32,
    /// The most bytes of a segment.
    pub segment_size: u32,
    /// Number of queues.
    pub queues: u16,
    /// Whether discard is supported.
    pub discard: bool,
    /// Whether write-zeroes is supported.
    pub write_zeroes: bool,
}

impl Config {
    /// Writes the configuration space (virtio 1.2, 5.2.4). `space` must be zeroed.
    pub fn write(&self, space: &mut [u8]) {
        let sectors = self.blocks.saturating_mul(self.block_size.into()) / SECTOR;
        let mut put = |at: usize, bytes: &[u8]| {
            let end = at.saturating_add(bytes.len());
            if let Some(place) = space.get_mut(at..end) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &sectors.to_le_bytes());
        put(8, &self.segment_size.to_le_bytes());
        put(12, &self.segments.to_le_bytes());
        put(20, &self.block_size.to_le_bytes());
        // min_io_size: one block.
        put(26, &1_u16.to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        if self.discard {
            put(36, &MAX_RANGE_SECTORS.to_le_bytes());
            put(40, &1_u32.to_le_bytes());
            put(44, &(self.block_size >> 9).to_le_bytes());
        }
        if self.write_zeroes {
            put(48, &MAX_RANGE_SECTORS.to_le_bytes());
            put(52, &1_u32.to_le_bytes());
        }
    }
}
