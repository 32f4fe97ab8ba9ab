//! Validates the data length of commands. A transport transfers what the command's SGL says. Bytes beyond what the
//! command itself transfers would expose the buffer's previous contents to the host.

use crate::nvme::{admin, io};

/// Bytes of Identify data.
pub const IDENTIFY_DATA: u64 = 4096;

/// The unit of a log page's length, in bytes.
pub const LOG_PAGE_UNIT: u64 = 4;

/// The most data of an admin command whose length does not follow from its fields, and of a reservation command: one
/// page, as hosts allocate it. Bytes.
pub const ADMIN_DATA_MAX: u64 = 4096;

/// Bytes of a Dataset Management range.
pub const DSM_RANGE: u64 = 16;

/// The most ranges of Dataset Management. A host may send a list of this length whatever the count says.
pub const DSM_RANGES_MAX: u64 = 256;

/// Bytes of a Copy source range, format 0.
const COPY_RANGE: u64 = 32;

/// Bytes of the keys that every reservation register and acquire command includes.
const RESERVATION_KEYS: u64 = 16;
const RESERVATION_RELEASE_KEY: u64 = 8;

/// Identifiers of features whose data length is fixed.
const FEATURE_HOST_BEHAVIOR: u32 = 0x16;
const FEATURE_HOST_IDENTIFIER: u32 = 0x81;

/// Bytes of the Host Behavior Support data structure.
const HOST_BEHAVIOR_DATA: u64 = 512;

/// Bytes of an extended host identifier, the only kind over fabrics.
const HOST_IDENTIFIER: u64 = 16;

/// The kind of queue on which a command was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// The admin queue.
    Admin,
    /// An I/O queue, with the block size (including interleaved metadata) of the command's namespace.
    Io {
        /// In bytes.
        block_size: u32,
    },
}

/// The fields of a command from which its data length follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in the specification")]
pub struct Command {
    pub opcode: u8,
    pub cdw10: u32,
    pub cdw11: u32,
    pub cdw12: u32,
}

impl Command {
    /// Returns whether `length`, the bytes of data that the SGL announces, is valid for the command.
    pub fn moves(&self, queue: Queue, length: u32) -> bool {
        let length = u64::from(length);
        match queue {
            Queue::Admin => self.admin_moves(length),
            Queue::Io { block_size } => self.io_moves(u64::from(block_size), length),
        }
    }

    fn admin_moves(&self, length: u64) -> bool {
        match self.opcode {
            admin::IDENTIFY => length == IDENTIFY_DATA,
            admin::GET_LOG_PAGE => Some(length) == self.log_page(),
            admin::GET_FEATURES => match self.cdw10 & 0xff {
                FEATURE_HOST_BEHAVIOR => length == HOST_BEHAVIOR_DATA,
                FEATURE_HOST_IDENTIFIER => length == HOST_IDENTIFIER,
                _ => length <= ADMIN_DATA_MAX,
            },
            _ => length <= ADMIN_DATA_MAX,
        }
    }

    fn io_moves(&self, block_size: u64, length: u64) -> bool {
        match self.opcode {
            io::READ | io::WRITE | io::COMPARE => Some(length) == self.blocks(block_size),
            io::DATASET_MANAGEMENT => {
                let list = u64::from(self.cdw10 & 0xff).checked_add(1);
                let told = list.and_then(|ranges| ranges.checked_mul(DSM_RANGE));
                told.is_some_and(|told| told <= length)
                    && Some(length) <= DSM_RANGES_MAX.checked_mul(DSM_RANGE)
            }
            io::RESERVATION_REGISTER | io::RESERVATION_ACQUIRE => {
                (RESERVATION_KEYS..=ADMIN_DATA_MAX).contains(&length)
            }
            io::RESERVATION_RELEASE => (RESERVATION_RELEASE_KEY..=ADMIN_DATA_MAX).contains(&length),
            io::RESERVATION_REPORT => {
                let dwords = u64::from(self.cdw10).checked_add(1);
                Some(length) == dwords.and_then(|dwords| dwords.checked_mul(LOG_PAGE_UNIT))
            }
            io::COPY => {
                let ranges = u64::from(self.cdw12 & 0xff).checked_add(1);
                Some(length) == ranges.and_then(|ranges| ranges.checked_mul(COPY_RANGE))
            }
            // Commands without data, or unknown here. An unknown command with data is refused.
            _ => length == 0,
        }
    }

    /// Bytes of a log page. NUMD is 0's based: its low half is in the upper half of dword 10, its high half in dword
    /// 11.
    fn log_page(&self) -> Option<u64> {
        let low = u64::from(self.cdw10 >> 16);
        let high = u64::from(self.cdw11 & 0xffff);
        let dwords = (high << 16 | low).checked_add(1)?;
        dwords.checked_mul(LOG_PAGE_UNIT)
    }

    /// Bytes of a transfer. NLB is 0's based, in the lower half of dword 12.
    fn blocks(&self, block_size: u64) -> Option<u64> {
        u64::from(self.cdw12 & 0xffff)
            .checked_add(1)?
            .checked_mul(block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IO: Queue = Queue::Io { block_size: 512 };

    fn command(opcode: u8, cdw10: u32, cdw11: u32, cdw12: u32) -> Command {
        Command {
            opcode,
            cdw10,
            cdw11,
            cdw12,
        }
    }

    /// The lengths up to 256 KiB that a command may have: first, last, and how many.
    fn lengths(command: Command, queue: Queue) -> (u32, u32, usize) {
        let right = (0..=256 << 10).filter(|length| command.moves(queue, *length));
        (
            right.clone().next().unwrap_or(u32::MAX),
            right.clone().next_back().unwrap_or(u32::MAX),
            right.count(),
        )
    }

    #[test]
    fn each_command_moves_what_its_fields_say() {
        let one = |length| (length, length, 1);
        for (queue, command, expected) in [
            (Queue::Admin, command(0x06, 1, 0, 0), one(4096)),
            (Queue::Admin, command(0x02, 0x007f_0002, 0, 0), one(512)),
            (
                Queue::Admin,
                command(0x02, 0xffff_0001, 0, 0),
                one(256 << 10),
            ),
            (Queue::Admin, command(0x0a, 0x16, 0, 0), one(512)),
            (Queue::Admin, command(0x0a, 0x81, 1, 0), one(16)),
            (Queue::Admin, command(0x0a, 0x07, 0, 0), (0, 4096, 4097)),
            (Queue::Admin, command(0x09, 0x16, 0, 0), (0, 4096, 4097)),
            (Queue::Admin, command(0x18, 0, 0, 0), (0, 4096, 4097)),
            (IO, command(0x02, 0, 0, 0), one(512)),
            (IO, command(0x01, 0, 0, 7), one(4096)),
            (IO, command(0x05, 0, 0, 0xabcd_00ff), one(128 << 10)),
            (IO, command(0x09, 0, 4, 0), (16, 4096, 4081)),
            (IO, command(0x09, 255, 4, 0), one(4096)),
            (IO, command(0x0d, 0, 0, 0), (16, 4096, 4081)),
            (IO, command(0x11, 0, 0, 0), (16, 4096, 4081)),
            (IO, command(0x15, 0, 0, 0), (8, 4096, 4089)),
            (IO, command(0x0e, 15, 1, 0), one(64)),
            (IO, command(0x19, 0, 0, 1), one(64)),
            (IO, command(0x00, 0, 0, 0), one(0)),
            (IO, command(0x08, 0, 0, 7), one(0)),
            (IO, command(0xc2, 0, 0, 0), one(0)),
        ] {
            assert_eq!(lengths(command, queue), expected, "{queue:?} {command:?}");
        }
    }

    #[test]
    fn sums_that_wrap_in_32_bits_do_not_here() {
        // In 32 bits, (0xffffffff + 1) * 4 and (65535 + 1) * 65536 would overflow to 0.
        for length in [0, 4, 64, 4096] {
            assert!(!command(0x0e, u32::MAX, 1, 0).moves(IO, length));
            assert!(!command(0x02, 0xffff_0001, 0xffff, 0).moves(Queue::Admin, length));
            let big = Queue::Io {
                block_size: 1 << 16,
            };
            assert!(!command(0x02, 0, 0, 0xffff).moves(big, length));
        }
    }

    proptest! {
        #[test]
        fn a_read_never_gets_more_than_its_blocks(nlb in any::<u16>(), length in any::<u32>(), shift in 9_u32..=16) {
            let block_size = 1 << shift;
            let read = command(0x02, 0, 0, u32::from(nlb));
            let right = (u64::from(nlb) + 1) << shift == u64::from(length);
            prop_assert_eq!(read.moves(Queue::Io { block_size }, length), right);
        }

        #[test]
        fn every_command_is_answered(opcode in any::<u8>(), dwords in any::<[u32; 3]>(), length in any::<u32>(), block_size in any::<u32>()) {
            let command = command(opcode, dwords[0], dwords[1], dwords[2]);
            let _ = command.moves(Queue::Admin, length);
            let _ = command.moves(Queue::Io { block_size }, length);
        }
    }
}
