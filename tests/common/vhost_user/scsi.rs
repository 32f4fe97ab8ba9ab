//! virtio-scsi requests (virtio 1.2, section 5.6).

/// Size of a command's response, sense data included.
pub const RESPONSE: usize = 108;

/// A SCSI command request.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// The logical unit's address.
    pub lun: [u8; 8],
    /// The command's tag.
    pub tag: u64,
    /// The command descriptor block.
    pub cdb: [u8; 32],
}

impl Command {
    /// A command to LUN 0 of a target.
    pub fn new(target: u8, cdb: &[u8]) -> Self {
        let mut block = [0; 32];
        block[..cdb.len()].copy_from_slice(cdb);
        Self {
            lun: lun(target, 0),
            tag: 1,
            cdb: block,
        }
    }

    /// READ(10) or WRITE(10) of blocks of target 0.
    pub fn transfer(operation: u8, block: u32, count: u16) -> Self {
        let [a, b, c, d] = block.to_be_bytes();
        let [high, low] = count.to_be_bytes();
        Self::new(0, &[operation, 0, a, b, c, d, 0, high, low, 0])
    }

    /// Encodes the request.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.lun.to_vec();
        bytes.extend(self.tag.to_le_bytes());
        // Task attribute, priority and command reference number.
        bytes.extend([0; 3]);
        bytes.extend(self.cdb);
        bytes
    }
}

/// A task management request.
#[derive(Clone, Copy, Debug)]
pub struct Tmf {
    /// The function: 0 abort task, 4 I_T nexus reset, 5 logical unit reset, 6 query task.
    pub function: u32,
    /// The logical unit's address.
    pub lun: [u8; 8],
}

impl Tmf {
    /// Encodes the request.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = 0u32.to_le_bytes().to_vec();
        bytes.extend(self.function.to_le_bytes());
        bytes.extend(self.lun);
        bytes.extend(1u64.to_le_bytes());
        bytes
    }
}

/// Returns the address of a logical unit.
pub fn lun(target: u8, unit: u16) -> [u8; 8] {
    let [high, low] = unit.to_be_bytes();
    [1, target, 0x40 | high, low, 0, 0, 0, 0]
}
