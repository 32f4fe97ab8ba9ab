//! Sanitizes Identify data, log pages and lists of a remote controller before SPDK uses them.
//!
//! SPDK computes buffer sizes, block counts and shifts from what a peer reports. Values that are only hints are
//! clamped; values without which the device is unusable are refused. Offsets are those of the NVMe base
//! specification 2.0, figure 275 (controller), and of the NVM command set specification 1.0, figure 97 (namespace).

use core::ffi::CStr;

/// The size of any Identify data structure, in bytes.
pub const IDENTIFY_LEN: usize = 4096;

/// The most namespaces of a remote controller.
pub const MAX_NAMESPACES: u32 = 1024;

/// The most ANA groups of a remote controller.
pub const MAX_ANA_GROUPS: u32 = 1024;

/// The largest capsule, in units of 16 bytes: 1 MiB.
const MAX_CAPSULE_UNITS: u32 = 1 << 16;

/// The smallest capsule: a command without data.
const MIN_CAPSULE_UNITS: u32 = 4;

/// The longest command retry delay that a peer may request, in units of 100 ms.
const MAX_RETRY_DELAY: u16 = 10;

/// Block sizes of 512 bytes to 32 KiB, so that products with 16-bit block counts fit in 32 bits.
const BLOCK_SHIFTS: core::ops::RangeInclusive<u8> = 9..=15;

/// Bounds of the keep alive timeout, in milliseconds.
const KEEP_ALIVE_MS: core::ops::RangeInclusive<u32> = 1_000..=5_000;

/// The largest minimum page size: 4 KiB shifted left by this.
const MAX_PAGE_SHIFT: u32 = 4;

/// Why a value is refused, as a C string that SPDK logs.
pub type Reason = &'static CStr;

fn bytes<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    data.get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn put<const N: usize>(data: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = data.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = value;
    }
}

fn bound_u32(data: &mut [u8], at: usize, low: u32, high: u32) {
    let value = u32::from_le_bytes(bytes(data, at)).clamp(low, high);
    put(data, at, value.to_le_bytes());
}

/// Offsets in Identify Controller data.
mod controller_at {
    pub(super) const MDTS: usize = 77;
    pub(super) const CRDT: [usize; 3] = [128, 130, 132];
    pub(super) const OACS: usize = 256;
    pub(super) const NANAGRPID: usize = 348;
    pub(super) const NN: usize = 516;
    pub(super) const MNAN: usize = 540;
    pub(super) const IOCCSZ: usize = 1792;
}

/// Features for local devices only: security commands, which SPDK would send and wait for synchronously, blocking
/// its reactor, and doorbell buffers.
const OACS_SECURITY: u16 = 1;
const OACS_DOORBELL_BUFFER: u16 = 1 << 8;

/// Sanitizes Identify Controller data. `page_shift` is log2 of the controller's smallest page. `lists`: the
/// controller supports lists of active namespaces (version 1.1); otherwise its namespaces are 1 to NN.
///
/// # Errors
/// The reason, if the controller has too many ANA groups, or too many namespaces without lists.
pub fn controller(
    data: &mut [u8; IDENTIFY_LEN],
    page_shift: u32,
    lists: bool,
) -> Result<(), Reason> {
    use controller_at::{CRDT, IOCCSZ, MDTS, MNAN, NANAGRPID, NN, OACS};
    if !lists && u32::from_le_bytes(bytes(data, NN)) > MAX_NAMESPACES {
        return Err(c"more namespaces than 1024, and no list of them");
    }
    if u32::from_le_bytes(bytes(data, NANAGRPID)) > MAX_ANA_GROUPS {
        return Err(c"more ANA groups than 1024");
    }
    // The namespaces themselves are counted when their list is read.
    bound_u32(data, MNAN, 0, MAX_NAMESPACES);
    bound_u32(data, IOCCSZ, MIN_CAPSULE_UNITS, MAX_CAPSULE_UNITS);
    let [mdts] = bytes(data, MDTS);
    if u32::from(mdts).saturating_add(page_shift) > 31 {
        // The limit exceeds any transfer: 0 means no limit.
        put(data, MDTS, [0]);
    }
    let oacs = u16::from_le_bytes(bytes(data, OACS)) & !(OACS_SECURITY | OACS_DOORBELL_BUFFER);
    put(data, OACS, oacs.to_le_bytes());
    for at in CRDT {
        let delay = u16::from_le_bytes(bytes(data, at)).min(MAX_RETRY_DELAY);
        put(data, at, delay.to_le_bytes());
    }
    Ok(())
}

/// Checks a controller's smallest page (CAP.MPSMIN).
///
/// # Errors
/// The reason, if the page is larger than 64 KiB.
pub const fn smallest_page(mpsmin: u32) -> Result<(), Reason> {
    if mpsmin > MAX_PAGE_SHIFT {
        return Err(c"a smallest page above 64 KiB");
    }
    Ok(())
}

/// Returns the keep alive timeout to use, in milliseconds, from the value the peer `answered` and the value
/// `wanted`. 0 disables it, which only this side may decide.
pub fn keep_alive(answered: u32, wanted: u32) -> u32 {
    match (wanted, answered) {
        (0, _) => 0,
        (wanted, 0) => wanted.clamp(*KEEP_ALIVE_MS.start(), *KEEP_ALIVE_MS.end()),
        (wanted, answered) => answered
            .min(wanted)
            .clamp(*KEEP_ALIVE_MS.start(), *KEEP_ALIVE_MS.end()),
    }
}

/// Offsets in Identify Namespace data.
mod namespace_at {
    pub(super) const NSZE: usize = 0;
    pub(super) const NCAP: usize = 8;
    pub(super) const NLBAF: usize = 25;
    pub(super) const FLBAS: usize = 26;
    pub(super) const DPS: usize = 29;
    pub(super) const NOIOB: usize = 46;
    pub(super) const LBAF: usize = 128;
}

/// Bounds of the table of LBA formats.
const MAX_FORMATS: u8 = 64;
const FORMAT_LEN: usize = 4;

/// The least metadata that protection information needs, in bytes.
const MIN_PROTECTION: u32 = 8;

/// The fields of a namespace that determine how its blocks are transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Data bytes per block.
    pub block: u32,
    /// Metadata bytes per block.
    pub metadata: u32,
    /// The metadata is interleaved: it follows each block.
    pub extended: bool,
}

/// Sanitizes Identify Namespace data. `max_transfer` is the largest transfer, in bytes.
///
/// # Errors
/// The reason, if the namespace's blocks are unusable.
pub fn namespace(data: &mut [u8; IDENTIFY_LEN], max_transfer: u32) -> Result<Geometry, Reason> {
    use namespace_at::{DPS, FLBAS, LBAF, NCAP, NLBAF, NOIOB, NSZE};
    let size = u64::from_le_bytes(bytes(data, NSZE));
    let capacity = u64::from_le_bytes(bytes(data, NCAP));
    if size == 0 || capacity == 0 || capacity > size {
        return Err(c"a namespace without blocks, or with more capacity than size");
    }
    let [nlbaf] = bytes(data, NLBAF);
    let [flbas] = bytes(data, FLBAS);
    // As SPDK evaluates FLBAS: its upper two bits count only with more than 16 formats.
    let format = match nlbaf {
        0..16 => flbas & 0xf,
        _ => (flbas & 0xf) | ((flbas >> 1) & 0x30),
    };
    if nlbaf >= MAX_FORMATS || format > nlbaf {
        return Err(c"a namespace with a format that it does not have");
    }
    let at = usize::from(format)
        .saturating_mul(FORMAT_LEN)
        .saturating_add(LBAF);
    let metadata = u32::from(u16::from_le_bytes(bytes(data, at)));
    let [shift] = bytes(data, at.saturating_add(2));
    if !BLOCK_SHIFTS.contains(&shift) {
        return Err(c"a namespace with a block size that is not 512 bytes to 32 KiB");
    }
    let block = 1_u32.checked_shl(u32::from(shift)).unwrap_or(0);
    if size
        .checked_mul(u64::from(block))
        .is_none_or(|bytes| i64::try_from(bytes).is_err())
    {
        return Err(c"a namespace with more than 2^63 bytes");
    }
    if metadata > block {
        return Err(c"a namespace with more metadata than data");
    }
    let extended = flbas & (1 << 4) != 0;
    let moved = if extended {
        block.saturating_add(metadata)
    } else {
        block
    };
    if moved > max_transfer {
        return Err(c"a namespace with blocks larger than the largest transfer");
    }
    let [dps] = bytes(data, DPS);
    if dps & 0b111 > 3 || (dps & 0b111 != 0 && metadata < MIN_PROTECTION) {
        return Err(c"a namespace with protection information that cannot be");
    }
    let boundary = u16::from_le_bytes(bytes(data, NOIOB));
    if !boundary.is_power_of_two() {
        // Only a hint, but SPDK uses it as a mask, which requires a power of two.
        put(data, NOIOB, [0; 2]);
    }
    Ok(Geometry {
        block,
        metadata,
        extended,
    })
}

/// The state of a list of active namespaces after the pages read so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// The list is complete, with this many namespaces.
    Ends(u32),
    /// The last page is full: the list continues after this namespace ID.
    GoesOn(u32),
}

/// Validates the pages read so far of a list of active namespaces. `highest` is the controller's highest namespace
/// ID.
///
/// # Errors
/// The reason, if the list does not ascend, contains an ID above `highest`, or has more than [`MAX_NAMESPACES`]
/// entries.
pub fn active_list(pages: &[u32], highest: u32) -> Result<List, Reason> {
    let mut last = 0;
    let mut count = 0_u32;
    for id in pages.iter().map(|id| u32::from_le(*id)) {
        if id == 0 {
            return Ok(List::Ends(count));
        }
        if id <= last {
            return Err(c"a list of namespaces that does not ascend");
        }
        if id > highest {
            return Err(c"a list with a namespace above the controller's highest");
        }
        if count >= MAX_NAMESPACES {
            return Err(c"more namespaces than 1024");
        }
        last = id;
        count = count.saturating_add(1);
    }
    Ok(List::GoesOn(last))
}

#[cfg(test)]
mod tests;
