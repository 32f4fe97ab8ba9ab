//! virtio-scsi requests (virtio 1.2, 5.6) and the commands of a disk (SPC-4, SBC-3).
//!
//! Commands are decided here, out of copies that the guest cannot change any more: a command block and a
//! parameter list become ranges in bytes that were checked, or the sense that answers them.

mod data;
mod ranges;

pub use data::{Identity, MAX_REPLY, no_unit_inquiry, reply};
pub use ranges::{MAX_RANGES, PARAMETERS, Ranges, unmap_ranges};

use super::{u32_at, u64_at};

/// Bytes in front of a command's data.
pub const HEADER: usize = 51;

/// Bytes of the answer to a command.
pub const RESPONSE: usize = 108;

/// Bytes of sense in an answer.
const SENSE: usize = 18;

/// Bytes of a command block.
pub const CDB: usize = 32;

/// Bytes of a task management request.
pub const TASK_MANAGEMENT: usize = 24;

/// Bytes of a request about asynchronous notifications.
pub const NOTIFICATION: usize = 16;

/// Bytes of an event.
pub const EVENT: usize = 16;

/// Targets of a controller.
pub const TARGETS: u8 = 8;

/// Most bytes of one read or write.
pub const MAX_TRANSFER: u64 = 4 << 20;

/// The queue of task management.
pub const CONTROL_QUEUE: u16 = 0;

/// The queue of events.
pub const EVENT_QUEUE: u16 = 1;

/// Queues before those of commands.
pub const FIXED_QUEUES: u16 = 2;

/// Features of a SCSI host.
pub mod feature {
    /// A command may have data in both directions; none of a disk does.
    pub const INOUT: u64 = 1;
    /// Disks come and go.
    pub const HOTPLUG: u64 = 1 << 1;
    /// Disks change.
    pub const CHANGE: u64 = 1 << 2;
}

/// What the transport says of a request.
pub mod response {
    /// It reached its unit.
    pub const OK: u8 = 0;
    /// There is no such target.
    pub const BAD_TARGET: u8 = 3;
    /// It failed.
    pub const FAILURE: u8 = 9;
    /// Nobody does this.
    pub const FUNCTION_REJECTED: u8 = 11;
    /// There is no such unit.
    pub const INCORRECT_LUN: u8 = 12;
}

/// SCSI status.
pub mod status {
    /// Done.
    pub const GOOD: u8 = 0;
    /// The sense says why not.
    pub const CHECK_CONDITION: u8 = 2;
    /// No memory now: to be tried again.
    pub const BUSY: u8 = 8;
}

/// Why a command failed: sense key, additional sense code and its qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense(pub u8, pub u8, pub u8);

impl Sense {
    /// A field of the command block is wrong.
    pub const INVALID_FIELD: Self = Self(5, 0x24, 0);
    /// A field of the parameter list is wrong.
    pub const INVALID_PARAMETER: Self = Self(5, 0x26, 0);
    /// The parameter list is too short or too long.
    pub const PARAMETER_LENGTH: Self = Self(5, 0x1a, 0);
    /// There is no such command.
    pub const INVALID_OPERATION: Self = Self(5, 0x20, 0);
    /// Blocks behind the end.
    pub const OUT_OF_RANGE: Self = Self(5, 0x21, 0);
    /// There is no such unit.
    pub const NO_UNIT: Self = Self(5, 0x25, 0);
    /// It could not be read.
    pub const READ_ERROR: Self = Self(3, 0x11, 0);
    /// It could not be written.
    pub const WRITE_ERROR: Self = Self(3, 0x0c, 0);
    /// The size has changed.
    pub const CAPACITY_CHANGED: Self = Self(6, 0x2a, 9);
    /// Nothing is wrong.
    pub const NONE: Self = Self(0, 0, 0);

    /// Fixed format sense data (SPC-4, 4.5.3).
    #[must_use]
    pub fn encode(self) -> [u8; SENSE] {
        let Self(key, code, qualifier) = self;
        [
            0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0,
        ]
    }
}

/// The answer to a command that reached a target: status, sense and how many bytes were not moved.
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

/// The answer to a command that reached no target.
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

/// Big-endian numbers out of bytes; 0 behind their end.
pub(super) fn be_at(bytes: &[u8], at: usize, width: usize) -> u64 {
    let end = at.saturating_add(width);
    let part = bytes.get(at..end).unwrap_or_default();
    part.iter()
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The target.
    pub target: u8,
    /// Its logical unit; a disk is 0.
    pub unit: u16,
}

/// Whom an address is for, or nobody.
#[must_use]
pub fn address(lun: &[u8]) -> Option<Address> {
    let &[1, target, high, low, ..] = lun else {
        return None;
    };
    let unit = u16::from_be_bytes([high, low]) & 0x3fff;
    (target < TARGETS).then_some(Address { target, unit })
}

/// Whom a command is for, and its command block.
#[must_use]
pub fn header(bytes: &[u8; HEADER]) -> (Option<Address>, [u8; CDB]) {
    let (front, cdb) = bytes.split_at(HEADER.saturating_sub(CDB));
    let mut block = [0; CDB];
    put(&mut block, 0, cdb);
    (front.get(..8).and_then(address), block)
}

/// The size of a disk and what it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block: a power of two from 512 on.
    pub block_size: u32,
    /// Bytes of a block of what is below.
    pub physical_block_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Whether ranges can be unmapped.
    pub unmap: bool,
    /// Whether ranges can be filled with zeroes.
    pub zeroes: bool,
}

impl Geometry {
    /// The range of blocks in bytes.
    ///
    /// # Errors
    /// It ends behind the disk.
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

/// What a command asks for. Ranges are in bytes, inside the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Data to the driver.
    Read {
        /// Where on the disk.
        offset: u64,
        /// How much; not more than there is room for.
        length: u64,
    },
    /// Data from the driver.
    Write {
        /// Where on the disk.
        offset: u64,
        /// How much; not more than there is.
        length: u64,
    },
    /// A range to unmap.
    Unmap {
        /// Where on the disk.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// A range to fill with zeroes, if all of the block that comes with it is zero.
    Zero {
        /// Where on the disk.
        offset: u64,
        /// How much.
        length: u64,
        /// Bytes of the block that comes with it; 0 for none.
        pattern: u32,
    },
    /// All that was written stays.
    Flush,
    /// The parameter list of this many bytes has ranges to unmap.
    UnmapList(usize),
    /// Data that [`reply`] makes.
    Reply,
    /// Nothing is to be done.
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

/// Whether a command tells of a disk rather than using it: these are answered while a unit attention waits.
#[must_use]
pub fn is_about_itself(cdb: &[u8; CDB]) -> bool {
    matches!(cdb.first(), Some(0x03 | 0x12 | 0xa0))
}

/// What a command block asks for, with this much to read and this much room beside header and answer.
///
/// # Errors
/// The sense to answer.
pub fn command(
    cdb: &[u8; CDB],
    disk: &Geometry,
    readable: u64,
    writable: u64,
) -> Result<Command, Sense> {
    let [operation, flags, ..] = *cdb;
    // Block and count of a command, by its length.
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
            // Less room than asked for is an underrun of whole blocks.
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

/// The range of a read or write, which has nothing in the other direction.
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
    // No count means up to the end of the disk.
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

/// What a request on the control queue asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// All that is outstanding at a target's disk is to end.
    Reset(u8),
    /// The answer.
    Answer(u8),
}

/// What a task management request asks for.
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

/// The kind of a request on the control queue.
#[must_use]
pub fn is_task_management(kind: [u8; 4]) -> bool {
    u32::from_le_bytes(kind) == 0
}

/// Something that a driver is told of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A disk has come.
    Added(u8),
    /// It has gone.
    Removed(u8),
    /// Its size is another one.
    Resized(u8),
}

impl Event {
    /// How the driver gets it.
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
        // The unit as REPORT LUNS tells it: Linux takes the flag of flat addressing for a part of its number.
        put(&mut bytes, 4, &[1, target, 0, 0]);
        put(&mut bytes, 12, &reason.to_le_bytes());
        bytes
    }
}

/// The configuration space (virtio 1.2, 5.6.4).
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

/// The tag that a driver gave a command.
#[must_use]
pub fn tag(bytes: &[u8; HEADER]) -> u64 {
    u64_at(bytes, 8)
}
