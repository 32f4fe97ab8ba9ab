//! Validates H2CData: the parts of the data that an R2T requested, in order, each once.

use super::{Connection, Fatal, Phase, Refusal, Verdict, at, flag};

/// Field offsets from the beginning of the PDU.
mod place {
    pub const CCCID: u8 = 8;
    pub const TTAG: u8 = 10;
    pub const OFFSET: u8 = 12;
    pub const LENGTH: u8 = 16;
}

/// What the request named by an H2CData expects.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// An R2T was sent for the request, and its data is incomplete.
    pub asked: bool,
    /// The command ID of the request.
    pub cid: u16,
    /// Offset of the next data: the end of what accepted headers have announced.
    pub next: u32,
    /// Bytes requested.
    pub length: u32,
}

/// Validates a header of 24 bytes. Returns the offset of the request's next data.
///
/// # Errors
/// The request expects no data, or not this part; the length is 0 or does not match the PDU.
#[inline]
pub fn h2c_data(connection: &Connection, expected: &Expected, header: &[u8; 24]) -> Verdict<u32> {
    #[rustfmt::skip]
    let [
        _, flags, _, pdo, p0, p1, p2, p3,
        c0, c1, _, _, o0, o1, o2, o3,
        l0, l1, l2, l3, ..
    ] = *header;
    let plen = u32::from_le_bytes([p0, p1, p2, p3]);
    let cccid = u16::from_le_bytes([c0, c1]);
    let offset = u32::from_le_bytes([o0, o1, o2, o3]);
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let is_in_order = match connection.phase {
        Phase::Unadmitted | Phase::Authenticating | Phase::Discovering | Phase::Connected => true,
        Phase::New | Phase::Closed => false,
    };
    if !expected.asked || !is_in_order {
        return Err(Refusal::new(Fatal::Sequence, place::TTAG));
    }
    if cccid != expected.cid {
        return Err(Refusal::new(Fatal::Sequence, place::CCCID));
    }
    if length == 0 {
        return Err(Refusal::new(Fatal::InvalidField, place::LENGTH));
    }
    let whole = u64::from(pdo)
        .saturating_add(u64::from(length))
        .saturating_add(u64::from(connection.data_digest_length()));
    if whole != u64::from(plen) {
        return Err(Refusal::new(Fatal::InvalidField, at::PLEN));
    }
    if offset != expected.next {
        return Err(Refusal::new(Fatal::OutOfRange, place::OFFSET));
    }
    let end = match offset.checked_add(length) {
        Some(end) if end <= expected.length => end,
        _ => return Err(Refusal::new(Fatal::OutOfRange, place::LENGTH)),
    };
    if (flags & flag::LAST != 0) != (end == expected.length) {
        return Err(Refusal::new(Fatal::InvalidField, at::FLAGS));
    }
    Ok(end)
}
