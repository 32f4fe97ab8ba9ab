//! Parses virtio-scsi requests (virtio 1.2, 5.6) and the commands of a disk (SPC-4, SBC-3).
//!
//! Commands are decoded from copies that the guest can no longer modify: a command block and a parameter list become
//! validated ranges in bytes, or the sense data to answer with.

mod data;
mod ranges;

pub use data::{Identity, MAX_REPLY, no_unit_inquiry, reply};
pub use ranges::{MAX_RANGES, PARAMETERS, Ranges, unmap_ranges};

use super::{u32_at, u64_at};

/// Bytes of a command's header, before its data.
pub const HEADER: usize = 51;

/// Bytes of a command's response.
pub const RESPONSE: usize = 108;

/// Bytes of sense data in a response.
const SENSE: usize = 18;

/// Bytes of a command block (CDB).
pub const CDB: usize = 32;

/// Bytes of a task management request.
pub const TASK_MANAGEMENT: usize = 24;

/// Bytes of an asynchronous notification request.
pub const NOTIFICATION: usize = 16;

/// Bytes of an event.
pub const EVENT: usize = 16;

/// Targets per controller.
pub const TARGETS: u8 = 8;

/// The most bytes of one read or write.
pub const MAX_TRANSFER: u64 = 4 << 20;

/// The control queue's index, for task management.
pub const CONTROL_QUEUE: u16 = 0;

/// The event queue's index.
pub const EVENT_QUEUE: u16 = 1;

/// Number of queues before the request queues.
pub const FIXED_QUEUES: u16 = 2;

/// Features of a SCSI host.
pub mod feature {
    /// Bidirectional commands; no disk command is.
    pub const INOUT: u64 = 1;
    /// Hotplug events.
    pub const HOTPLUG: u64 = 1 << 1;
    /// Parameter change events.
    pub const CHANGE: u64 = 1 << 2;
}

/// Transport-level response codes.
pub mod response {
    /// Delivered to the logical unit.
    pub const OK: u8 = 0;
    /// No such target.
    pub const BAD_TARGET: u8 = 3;
    /// Transport failure.
    pub const FAILURE: u8 = 9;
    /// Unsupported function.
    pub const FUNCTION_REJECTED: u8 = 11;
    /// No such logical unit.
    pub const INCORRECT_LUN: u8 = 12;
}

/// SCSI status.
pub mod status {
    /// Success.
    pub const GOOD: u8 = 0;
    /// Failed; the sense data says why.
    pub const CHECK_CONDITION: u8 = 2;
    /// Out of memory for now: the driver should retry.
    pub const BUSY: u8 = 8;
}

/// Sense data: sense key, additional sense code (ASC), and its qualifier (ASCQ).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense(pub u8, pub u8, pub u8);

impl Sense {
    /// Invalid field in the CDB.
    pub const INVALID_FIELD: Self = Self(5, 0x24, 0);
    /// Invalid field in the parameter list.
    pub const INVALID_PARAMETER: Self = Self(5, 0x26, 0);
    /// Parameter list length error.
    pub const PARAMETER_LENGTH: Self = Self(5, 0x1a, 0);
    /// Invalid operation code.
    pub const INVALID_OPERATION: Self = Self(5, 0x20, 0);
    /// Logical block address out of range.
    pub const OUT_OF_RANGE: Self = Self(5, 0x21, 0);
    /// Logical unit not supported.
    pub const NO_UNIT: Self = Self(5, 0x25, 0);
    /// Unrecovered read error.
    pub const READ_ERROR: Self = Self(3, 0x11, 0);
    /// Write error.
    pub const WRITE_ERROR: Self = Self(3, 0x0c, 0);
    /// Capacity data has changed (unit attention).
    pub const CAPACITY_CHANGED: Self = Self(6, 0x2a, 9);
    /// No sense.
    pub const NONE: Self = Self(0, 0, 0);

    /// Encodes fixed format sense data (SPC-4, 4.5.3).
    #[must_use]
    pub fn encode(self) -> [u8; SENSE] {
        let Self(key, code, qualifier) = self;
        [
            0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0,
        ]
    }
}

/// Encodes the response to a command that reached a target; `residual` is the number of bytes not transferred.
#[must_use]
pub fn answer(result: Result<u8, Sense>, residual: u32) -> [u8; RESPONSE] {
    let mut bytes = [0; RESPONSE];
    put(&mut bytes, 4, &residual.to_le_bytes());
    match result {
        Ok(status) => put(&mut bytes, 10, &[status]),
        Err(sense) => {
            put(&mut bytes, 0, &(SENSE as u32).to_le_bytes());
            put(&mut bytes, 10, &[status::CHECK_CONDITION]);
            put(&mut bytes, 12, &sense.encode());
        }
    }
    bytes
}

/// Encodes the response to a command that reached no target.
#[must_use]
pub fn unreached(response: u8) -> [u8; RESPONSE] {
    let mut bytes = [0; RESPONSE];
    put(&mut bytes, 11, &[response]);
    bytes
}

pub(super) fn put(space: &mut [u8], at: usize, bytes: &[u8]) {
    let end = at.saturating_add(bytes.len());
    if let Some(place) = space.get_mut(at..end) {
        place.copy_from_slice(bytes);
    }
}

/// Decodes a big-endian number of `width` bytes; bytes beyond the end are missing from it.
pub(super) fn be_at(bytes: &[u8], at: usize, width: usize) -> u64 {
    let end = at.saturating_add(width);
    let part = bytes.get(at..end).unwrap_or_default();
    part.iter()
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// The addressee of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Target number.
    pub target: u8,
    /// Logical unit number; a disk is 0.
    pub unit: u16,
}

/// Decodes a LUN field; `None` if it addresses no target here.
#[must_use]
pub fn address(lun: &[u8]) -> Option<Address> {
    let &[1, target, high, low, ..] = lun else {
        return None;
    };
    let unit = u16::from_be_bytes([high, low]) & 0x3fff;
    (target < TARGETS).then_some(Address { target, unit })
}

/// Splits a request header into its addressee and its command block.
#[must_use]
pub fn header(bytes: &[u8; HEADER]) -> (Option<Address>, [u8; CDB]) {
    let (front, cdb) = bytes.split_at(HEADER.saturating_sub(CDB));
    let mut block = [0; CDB];
    put(&mut block, 0, cdb);
    (front.get(..8).and_then(address), block)
}

/// A disk's size and capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block: a power of two, at least 512.
    pub block_size: u32,
    /// Bytes of a physical block.
    pub physical_block_size: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Whether UNMAP is supported.
    pub unmap: bool,
    /// Whether ranges can be zeroed.
    pub zeroes: bool,
}

impl Geometry {
    /// Converts a range of blocks to bytes (offset, length).
    ///
    /// # Errors
    /// The range ends beyond the disk.
    pub fn range(&self, block: u64, count: u64) -> Result<(u64, u64), Sense> {
        let end = block.checked_add(count).ok_or(Sense::OUT_OF_RANGE)?;
        if end > self.blocks {
            return Err(Sense::OUT_OF_RANGE);
        }
        let size = u64::from(self.block_size);
        let offset = block.checked_mul(size).ok_or(Sense::OUT_OF_RANGE)?;
        let length = count.checked_mul(size).ok_or(Sense::OUT_OF_RANGE)?;
        offset.checked_add(length).ok_or(Sense::OUT_OF_RANGE)?;
        Ok((offset, length))
    }
}

/// A parsed command. Ranges are in bytes, within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read: data to the driver.
    Read {
        /// Offset on the disk.
        offset: u64,
        /// Number of bytes, at most what the driver's buffers hold.
        length: u64,
    },
    /// Write: data from the driver.
    Write {
        /// Offset on the disk.
        offset: u64,
        /// Number of bytes, at most what the driver sends.
        length: u64,
    },
    /// Unmaps a range.
    Unmap {
        /// Offset on the disk.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Zeroes a range, provided that the pattern block is all zero.
    Zero {
        /// Offset on the disk.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Bytes of the pattern block sent with the command; 0 for none.
        pattern: u32,
    },
    /// Makes all completed writes durable.
    Flush,
    /// Unmaps the ranges in the parameter list of this many bytes.
    UnmapList(usize),
    /// Returns data that [`reply`] generates.
    Reply,
    /// Completes without doing anything.
    Nothing,
}

const READ_6: u8 = 0x08;
const WRITE_6: u8 = 0x0a;
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;
const READ_12: u8 = 0xa8;
const WRITE_12: u8 = 0xaa;
const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8a;

/// Returns whether a command only queries the device. Such commands do not report a pending unit attention.
#[must_use]
pub fn is_about_itself(cdb: &[u8; CDB]) -> bool {
    matches!(cdb.first(), Some(0x03 | 0x12 | 0xa0))
}

/// Parses a command block. `readable` and `writable` are the bytes besides header and response.
///
/// # Errors
/// The sense data to respond with.
pub fn command(
    cdb: &[u8; CDB],
    disk: &Geometry,
    readable: u64,
    writable: u64,
) -> Result<Command, Sense> {
    let [operation, flags, ..] = *cdb;
    // Block and count, by the command's length.
    let place = match operation {
        READ_6 | WRITE_6 => {
            let count = be_at(cdb, 4, 1);
            (
                be_at(cdb, 1, 3) & 0x1f_ffff,
                if count == 0 { 256 } else { count },
            )
        }
        READ_10 | WRITE_10 | 0x35 | 0x41 => (be_at(cdb, 2, 4), be_at(cdb, 7, 2)),
        READ_12 | WRITE_12 => (be_at(cdb, 2, 4), be_at(cdb, 6, 4)),
        _ => (be_at(cdb, 2, 8), be_at(cdb, 10, 4)),
    };
    match operation {
        READ_6 | READ_10 | READ_12 | READ_16 => {
            let (offset, length) = transfer(disk, place, readable)?;
            if length == 0 {
                return Ok(Command::Nothing);
            }
            // A shorter buffer is an underrun, of whole blocks.
            let room = writable.checked_div(disk.block_size.into()).unwrap_or(0);
            let room = room.saturating_mul(disk.block_size.into());
            match length.min(room) {
                0 => Err(Sense::INVALID_FIELD),
                length => Ok(Command::Read { offset, length }),
            }
        }
        WRITE_6 | WRITE_10 | WRITE_12 | WRITE_16 => {
            let (offset, length) = transfer(disk, place, writable)?;
            match length {
                0 => Ok(Command::Nothing),
                _ if readable < length => Err(Sense::INVALID_FIELD),
                _ => Ok(Command::Write { offset, length }),
            }
        }
        // SYNCHRONIZE CACHE
        0x35 | 0x91 => disk.range(place.0, place.1).map(|_| Command::Flush),
        // WRITE SAME
        0x41 | 0x93 => write_same(disk, place, flags, operation == 0x93, readable),
        // UNMAP
        0x42 => {
            let length = be_at(cdb, 7, 2);
            match usize::try_from(length) {
                _ if !disk.unmap || flags & 1 != 0 => Err(Sense::INVALID_FIELD),
                Ok(0) => Ok(Command::Nothing),
                Ok(length) if length <= PARAMETERS && length as u64 <= readable => {
                    Ok(Command::UnmapList(length))
                }
                _ => Err(Sense::PARAMETER_LENGTH),
            }
        }
        // TEST UNIT READY, START STOP UNIT
        0x00 | 0x1b => Ok(Command::Nothing),
        // REQUEST SENSE, INQUIRY, MODE SENSE, READ CAPACITY, REPORT LUNS
        0x03 | 0x12 | 0x1a | 0x5a | 0x25 | 0x9e | 0xa0 => Ok(Command::Reply),
        _ => Err(Sense::INVALID_OPERATION),
    }
}

/// Converts and bounds the range of a read or write; `other` must be 0, the bytes in the other direction.
fn transfer(disk: &Geometry, (block, count): (u64, u64), other: u64) -> Result<(u64, u64), Sense> {
    let (offset, length) = disk.range(block, count)?;
    if other != 0 || length > MAX_TRANSFER {
        return Err(Sense::INVALID_FIELD);
    }
    Ok((offset, length))
}

fn write_same(
    disk: &Geometry,
    (block, count): (u64, u64),
    flags: u8,
    is_long: bool,
    readable: u64,
) -> Result<Command, Sense> {
    const UNMAP: u8 = 8;
    const NO_DATA: u8 = 1;
    // A count of 0 extends to the end of the disk.
    let count = match count {
        0 => disk.blocks.saturating_sub(block),
        count => count,
    };
    let (offset, length) = disk.range(block, count)?;
    let no_data = is_long && flags & NO_DATA != 0;
    if !no_data && readable != u64::from(disk.block_size) {
        return Err(Sense::INVALID_FIELD);
    }
    if length == 0 {
        return Ok(Command::Nothing);
    }
    match flags & UNMAP != 0 {
        true if disk.unmap => Ok(Command::Unmap { offset, length }),
        _ if !disk.zeroes => Err(Sense::INVALID_FIELD),
        _ => Ok(Command::Zero {
            offset,
            length,
            pattern: if no_data { 0 } else { disk.block_size },
        }),
    }
}

/// A request on the control queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Aborts all outstanding commands of a target's disk.
    Reset(u8),
    /// The response code to complete with.
    Answer(u8),
}

/// Parses a task management request.
#[must_use]
pub fn task_management(bytes: &[u8; TASK_MANAGEMENT]) -> Control {
    const LOGICAL_UNIT_RESET: u32 = 5;
    let Some(Address { target, unit }) = bytes.get(8..16).and_then(address) else {
        return Control::Answer(response::BAD_TARGET);
    };
    match (u32_at(bytes, 4), unit) {
        (_, 1..) => Control::Answer(response::INCORRECT_LUN),
        (LOGICAL_UNIT_RESET, _) => Control::Reset(target),
        _ => Control::Answer(response::FUNCTION_REJECTED),
    }
}

/// Returns whether a control request is for task management.
#[must_use]
pub fn is_task_management(kind: [u8; 4]) -> bool {
    u32::from_le_bytes(kind) == 0
}

/// A change of a target that the driver is notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A disk was added.
    Added(u8),
    /// A disk was removed.
    Removed(u8),
    /// A disk's size has changed.
    Resized(u8),
}

impl Event {
    /// Encodes the event for the driver.
    #[must_use]
    pub fn encode(self) -> [u8; EVENT] {
        const RESET: u32 = 1;
        const CHANGE: u32 = 3;
        let (event, target, reason): (u32, u8, u32) = match self {
            Self::Added(target) => (RESET, target, 1),
            Self::Removed(target) => (RESET, target, 2),
            Self::Resized(target) => (CHANGE, target, 0x092a),
        };
        let mut bytes = [0; EVENT];
        put(&mut bytes, 0, &event.to_le_bytes());
        // The unit in the encoding of REPORT LUNS: Linux takes the flag of flat space addressing for part of the
        // number.
        put(&mut bytes, 4, &[1, target, 0, 0]);
        put(&mut bytes, 12, &reason.to_le_bytes());
        bytes
    }
}

/// Writes the configuration space (virtio 1.2, 5.6.4).
pub fn configure(space: &mut [u8], queues: u16, segments: u32) {
    let words: [u32; 7] = [
        queues.into(),
        segments,
        (MAX_TRANSFER / 512) as u32,
        128,
        EVENT as u32,
        96,
        CDB as u32,
    ];
    for (at, word) in words.iter().enumerate() {
        put(space, at.saturating_mul(4), &word.to_le_bytes());
    }
    put(
        space,
        30,
        &u16::from(TARGETS.saturating_sub(1)).to_le_bytes(),
    );
    put(space, 32, &0x3fff_u32.to_le_bytes());
}

/// Returns the tag that the driver gave a command.
#[must_use]
pub fn tag(bytes: &[u8; HEADER]) -> u64 {
    u64_at(bytes, 8)
}
