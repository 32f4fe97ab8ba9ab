//! NVMe commands of the PCIe transport, 64 bytes each.

/// Admin opcodes.
pub mod admin {
    pub const DELETE_SQ: u8 = 0;
    pub const CREATE_SQ: u8 = 1;
    pub const DELETE_CQ: u8 = 4;
    pub const CREATE_CQ: u8 = 5;
    pub const IDENTIFY: u8 = 6;
    pub const ABORT: u8 = 8;
    pub const ASYNC_EVENT: u8 = 0x0c;
}

/// I/O opcodes.
pub mod io {
    pub const WRITE: u8 = 1;
    pub const READ: u8 = 2;
    pub const COMPARE: u8 = 5;
}

/// A submission queue entry.
#[derive(Clone, Debug)]
pub struct Command(pub [u8; 64]);

impl Command {
    /// A command with this opcode; its command ID is set on submission.
    pub fn new(opcode: u8) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = opcode;
        Self(bytes)
    }

    /// Reads or writes `blocks` blocks of namespace 1 from `block` on.
    pub fn rw(opcode: u8, block: u64, blocks: u16) -> Self {
        Self::new(opcode)
            .nsid(1)
            .dword(10, block as u32)
            .dword(11, (block >> 32) as u32)
            .dword(12, u32::from(blocks - 1))
    }

    /// Create I/O Completion Queue.
    pub fn create_cq(qid: u16, entries: u16, address: u64) -> Self {
        // PC (physically contiguous), IEN, interrupt vector 1.
        Self::new(admin::CREATE_CQ)
            .prps(address, 0)
            .dword(10, u32::from(entries - 1) << 16 | u32::from(qid))
            .dword(11, 1 << 16 | 3)
    }

    /// Create I/O Submission Queue.
    pub fn create_sq(qid: u16, cqid: u16, entries: u16, address: u64) -> Self {
        Self::new(admin::CREATE_SQ)
            .prps(address, 0)
            .dword(10, u32::from(entries - 1) << 16 | u32::from(qid))
            .dword(11, u32::from(cqid) << 16 | 1)
    }

    /// Delete I/O Submission or Completion Queue.
    pub fn delete(opcode: u8, qid: u16) -> Self {
        Self::new(opcode).dword(10, u32::from(qid))
    }

    pub fn nsid(self, nsid: u32) -> Self {
        self.dword(1, nsid)
    }

    /// Sets FUSE: first (1) or second (2) of two fused commands.
    pub fn fused(mut self, which: u8) -> Self {
        self.0[1] |= which;
        self
    }

    pub fn prps(self, prp1: u64, prp2: u64) -> Self {
        self.qword(6, prp1).qword(8, prp2)
    }

    /// Sets PSDT and an SGL descriptor: address, length and type byte.
    pub fn sgl(mut self, address: u64, length: u32, kind: u8) -> Self {
        self.0[1] |= 0x40;
        self.qword(6, address)
            .dword(8, length)
            .dword(9, u32::from(kind) << 24)
    }

    pub fn id(mut self, id: u16) -> Self {
        self.0[2..4].copy_from_slice(&id.to_le_bytes());
        self
    }

    pub fn dword(mut self, index: usize, value: u32) -> Self {
        self.0[index * 4..index * 4 + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn qword(self, index: usize, value: u64) -> Self {
        self.dword(index, value as u32)
            .dword(index + 1, (value >> 32) as u32)
    }
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub id: u16,
    /// Status code type and status code; 0 is success.
    pub status: u16,
    pub result: u32,
}

impl Completion {
    pub fn is_ok(self) -> bool {
        self.status == 0
    }
}
