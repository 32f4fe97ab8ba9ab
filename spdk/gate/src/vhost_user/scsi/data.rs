//! Replies to SCSI commands that query a disk.

use super::{CDB, Geometry, MAX_RANGES, MAX_TRANSFER, Sense, be_at, put};

/// The most bytes that [`reply`] generates.
pub const MAX_REPLY: usize = 256;

const VENDOR: &[u8; 8] = b"OPI     ";
const REVISION: &[u8; 4] = b"0001";

/// The identity of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// The product name of its kind, padded with spaces.
    pub product: [u8; 16],
}

impl Identity {
    /// Returns the serial number: the UUID in hexadecimal.
    fn serial(&self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut serial = [b'0'; 32];
        for (places, byte) in serial.chunks_exact_mut(2).zip(self.uuid) {
            for (place, half) in places.iter_mut().zip([byte >> 4, byte & 15]) {
                *place = DIGITS.get(usize::from(half)).copied().unwrap_or(b'0');
            }
        }
        serial
    }

    /// Returns a world wide name of 16 bytes: NAA 6, then the UUID without its 4-bit version, which makes room for
    /// the 4 bits of NAA.
    fn name(&self) -> [u8; 16] {
        let mut bits = u128::from_be_bytes(self.uuid);
        // Drop the version field: bits 76 to 79.
        let low = bits & ((1 << 76) - 1);
        bits = (bits >> 80 << 76) | low;
        (bits | (6 << 124)).to_be_bytes()
    }
}

/// A buffer that is filled front to back.
struct Reply<'a> {
    bytes: &'a mut [u8; MAX_REPLY],
    length: usize,
}

impl Reply<'_> {
    fn add(&mut self, bytes: &[u8]) -> &mut Self {
        put(self.bytes, self.length, bytes);
        self.length = self.length.saturating_add(bytes.len()).min(MAX_REPLY);
        self
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        put(self.bytes, at, bytes);
    }
}

/// Answers a command that queries the disk. Returns the bytes of `bytes` filled in, at most the command's allocation
/// length.
///
/// # Errors
/// The sense data to respond with.
pub fn reply(
    cdb: &[u8; CDB],
    disk: &Geometry,
    identity: &Identity,
    bytes: &mut [u8; MAX_REPLY],
) -> Result<usize, Sense> {
    let [operation, ..] = *cdb;
    let mut made = Reply { bytes, length: 0 };
    let room = match operation {
        0x12 => {
            inquiry(cdb, disk, identity, &mut made)?;
            be_at(cdb, 3, 2)
        }
        0x03 => {
            made.add(&Sense::NONE.encode());
            be_at(cdb, 4, 1)
        }
        0x1a => {
            mode_sense(cdb, false, &mut made)?;
            be_at(cdb, 4, 1)
        }
        0x5a => {
            mode_sense(cdb, true, &mut made)?;
            be_at(cdb, 7, 2)
        }
        0x25 => {
            let last = u32::try_from(disk.blocks.saturating_sub(1)).unwrap_or(u32::MAX);
            made.add(&last.to_be_bytes())
                .add(&disk.block_size.to_be_bytes());
            8
        }
        0x9e if be_at(cdb, 1, 1) & 0x1f == 0x10 => {
            made.add(&disk.blocks.saturating_sub(1).to_be_bytes());
            made.add(&disk.block_size.to_be_bytes());
            let ratio = disk
                .physical_block_size
                .checked_div(disk.block_size)
                .unwrap_or(1);
            let exponent = u8::try_from(ratio.max(1).ilog2()).unwrap_or(0).min(15);
            let unmaps = if disk.unmap { 0x80 } else { 0 };
            made.add(&[0, exponent, unmaps, 0]).add(&[0; 16]);
            be_at(cdb, 10, 4)
        }
        0xa0 if be_at(cdb, 6, 4) >= 16 && be_at(cdb, 2, 1) <= 2 => {
            // A single logical unit, number 0.
            made.add(&8_u32.to_be_bytes()).add(&[0; 12]);
            be_at(cdb, 6, 4)
        }
        _ => return Err(Sense::INVALID_FIELD),
    };
    Ok(made.length.min(usize::try_from(room).unwrap_or(usize::MAX)))
}

/// Returns the INQUIRY data for a unit that does not exist.
#[must_use]
pub fn no_unit_inquiry() -> [u8; 36] {
    let mut bytes = [0; 36];
    put(&mut bytes, 0, &[0x7f, 0, 0, 0, 31]);
    bytes
}

fn inquiry(
    cdb: &[u8; CDB],
    disk: &Geometry,
    identity: &Identity,
    made: &mut Reply<'_>,
) -> Result<(), Sense> {
    let [_, flags, page, ..] = *cdb;
    if flags & 1 == 0 {
        if page != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        // A direct access device, SPC-3, with command queueing.
        made.add(&[0, 0, 5, 0x12, 91, 0, 0, 2]);
        made.add(VENDOR).add(&identity.product).add(REVISION);
        made.add(&[0; 22]);
        for version in [0x0960_u16, 0x0300, 0x0320, 0x0040] {
            made.add(&version.to_be_bytes());
        }
        made.add(&[0; 30]);
        return Ok(());
    }
    made.add(&[0, page, 0, 0]);
    match page {
        0x00 => {
            made.add(&[0x00, 0x80, 0x83, 0xb0, 0xb1]);
            if disk.unmap {
                made.add(&[0xb2]);
            }
        }
        0x80 => {
            made.add(&identity.serial());
        }
        0x83 => {
            // Two designators of the logical unit: the binary name (NAA), and vendor, product and serial in ASCII
            // (T10).
            made.add(&[1, 3, 0, 16]).add(&identity.name());
            made.add(&[2, 1, 0, 56])
                .add(VENDOR)
                .add(&identity.product)
                .add(&identity.serial());
        }
        0xb0 => {
            let blocks = u64::from(disk.block_size);
            let most = MAX_TRANSFER.checked_div(blocks).unwrap_or(0);
            let most = u32::try_from(most).unwrap_or(u32::MAX).to_be_bytes();
            let grain = u16::try_from(4096_u32.checked_div(disk.block_size).unwrap_or(1).max(1));
            made.add(&[0, 0]).add(&grain.unwrap_or(1).to_be_bytes());
            made.add(&most).add(&most).add(&[0; 4]);
            let ranges = u32::try_from(MAX_RANGES).unwrap_or(1);
            let unmap = if disk.unmap {
                (4_194_304_u32, ranges)
            } else {
                (0, 0)
            };
            made.add(&unmap.0.to_be_bytes())
                .add(&unmap.1.to_be_bytes())
                .add(&[0; 8]);
            // No limit for WRITE SAME.
            made.add(&[0; 28]);
        }
        // Non-rotating medium.
        0xb1 => {
            made.add(&[0, 1]).add(&[0; 58]);
        }
        0xb2 if disk.unmap => {
            // Supports UNMAP, and WRITE SAME (10) and (16) with the UNMAP bit.
            made.add(&[0, 0xe0, 2, 0]);
        }
        _ => return Err(Sense::INVALID_FIELD),
    }
    let length = u16::try_from(made.length.saturating_sub(4)).unwrap_or(u16::MAX);
    made.set(2, &length.to_be_bytes());
    Ok(())
}

/// Writes a header without block descriptors, and the requested mode pages: caching and control.
fn mode_sense(cdb: &[u8; CDB], is_long: bool, made: &mut Reply<'_>) -> Result<(), Sense> {
    const CACHING: u8 = 8;
    const ALL: u8 = 0x3f;
    let [_, _, page, subpage, ..] = *cdb;
    made.add(if is_long { &[0; 8] } else { &[0; 4] });
    match (page & 0x3f, subpage) {
        // Page control 1 asks for changeable values: none are.
        (CACHING | ALL, 0 | 0xff) => {
            let write_cache = if page >> 6 == 1 { 0 } else { 4 };
            made.add(&[CACHING, 18, write_cache]).add(&[0; 17]);
        }
        // Control mode page.
        (0x0a, 0) => {}
        _ => return Err(Sense::INVALID_FIELD),
    }
    if matches!(page & 0x3f, 0x0a | ALL) {
        made.add(&[0x0a, 10]).add(&[0; 10]);
    }
    let length = made.length;
    match is_long {
        true => made.set(
            0,
            &u16::try_from(length.saturating_sub(2))
                .unwrap_or(0)
                .to_be_bytes(),
        ),
        false => made.set(0, &[u8::try_from(length.saturating_sub(1)).unwrap_or(0)]),
    }
    Ok(())
}
