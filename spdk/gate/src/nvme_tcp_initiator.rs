//! NVMe/TCP, initiator side: validates the PDUs of a target and their sequence.
//!
//! ```text
//! ICResp ─► PDU header (sizes, digests) ─► R2T      for a command that sends, in order, within its size
//!                                      ├► C2HData   for a command that reads, in order, within its size
//!                                      └► response  once, with all data moved if it succeeds
//! ```
//!
//! Sources: NVMe/TCP Transport Specification 1.0, 3.3 (flow of data) and 3.6 (PDUs).

use crate::nvme::{FABRICS, admin, io};

/// Fatal error status of a H2CTermReq (NVMe/TCP transport specification, FES).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fatal {
    /// A header field has an invalid value.
    InvalidHeaderField = 1,
    /// The PDU is out of sequence.
    PduSequence = 2,
    /// Data beyond the end of the command's buffer.
    OutOfRange = 4,
    /// More concurrent R2Ts than allowed.
    LimitExceeded = 5,
}

/// Why a PDU is refused: the status for the TermReq, and the text for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status sent to the peer.
    pub fatal: Fatal,
    /// The text for the operator. A C string, since SPDK logs it.
    pub reason: &'static core::ffi::CStr,
}

type Verdict = Result<(), Refusal>;

const fn refuse(fatal: Fatal, reason: &'static core::ffi::CStr) -> Verdict {
    Err(Refusal { fatal, reason })
}

/// The digests negotiated when the connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Headers carry a digest.
    pub header: bool,
    /// Data carries a digest.
    pub data: bool,
}

/// The common header: the first eight bytes of a PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// PDU type.
    pub kind: u8,
    /// Flags, whose meaning depends on the PDU type.
    pub flags: u8,
    /// Header length (HLEN), in bytes.
    pub hlen: u8,
    /// Data offset (PDO), in bytes.
    pub pdo: u8,
    /// Length of the whole PDU (PLEN), in bytes.
    pub plen: u32,
}

/// PDU types that a controller sends.
mod kind {
    pub(super) const IC_RESP: u8 = 0x01;
    pub(super) const C2H_TERM_REQ: u8 = 0x03;
    pub(super) const CAPSULE_RESP: u8 = 0x05;
    pub(super) const C2H_DATA: u8 = 0x07;
    pub(super) const R2T: u8 = 0x09;
}

const FLAG_HEADER_DIGEST: u8 = 1;
const FLAG_DATA_DIGEST: u8 = 1 << 1;
const FLAG_LAST_PDU: u8 = 1 << 2;
const FLAG_SUCCESS: u8 = 1 << 3;

const DIGEST_LEN: u32 = 4;
const IC_LEN: u32 = 128;
const RESP_LEN: u32 = 24;
const R2T_LEN: u32 = 24;
const C2H_DATA_LEN: u32 = 24;
const TERM_REQ_LEN: u32 = 24;
const MAX_TERM_REQ_LEN: u32 = 152;

/// The highest data offset, in bytes: 32 units of 4 bytes (PDO, HPDA).
const MAX_PDO: u32 = 128;

/// The smallest MAXH2CDATA that a controller may announce, in bytes.
const MIN_MAXH2CDATA: u32 = 4096;

/// The highest CPDA.
const MAX_CPDA: u8 = 31;

/// Validates a common header.
///
/// # Errors
/// A [`Refusal`] if a controller never sends this type, or if the lengths do not match the type.
pub fn header(header: Header, digests: Digests) -> Verdict {
    use Fatal::InvalidHeaderField;
    let Header { kind, hlen, .. } = header;
    let digest = if digests.header { DIGEST_LEN } else { 0 };
    let flagged = header.flags & FLAG_HEADER_DIGEST != 0;
    let hlen = u32::from(hlen);
    let whole = match kind {
        kind::IC_RESP => (IC_LEN, IC_LEN),
        kind::CAPSULE_RESP => (RESP_LEN, RESP_LEN.saturating_add(digest)),
        kind::R2T => (R2T_LEN, R2T_LEN.saturating_add(digest)),
        kind::C2H_TERM_REQ => {
            if hlen != TERM_REQ_LEN || header.plen <= hlen || header.plen > MAX_TERM_REQ_LEN {
                return refuse(
                    InvalidHeaderField,
                    c"C2HTermReq with a length that cannot be",
                );
            }
            return Ok(());
        }
        kind::C2H_DATA => {
            let begin = C2H_DATA_LEN.saturating_add(digest);
            let pdo = u32::from(header.pdo);
            let well_placed = (begin..=MAX_PDO).contains(&pdo) && pdo % 4 == 0;
            if hlen != C2H_DATA_LEN || !well_placed || header.plen <= pdo {
                return refuse(
                    InvalidHeaderField,
                    c"C2HData with a length or offset that cannot be",
                );
            }
            let with_data = header.flags & FLAG_DATA_DIGEST != 0;
            if flagged != digests.header || with_data != digests.data {
                return refuse(
                    InvalidHeaderField,
                    c"C2HData with other digests than agreed on",
                );
            }
            return Ok(());
        }
        _ => {
            return refuse(
                InvalidHeaderField,
                c"PDU of a type that no controller sends",
            );
        }
    };
    if (hlen, header.plen) != whole {
        return refuse(
            InvalidHeaderField,
            c"PDU whose length is not that of its type",
        );
    }
    if kind != kind::IC_RESP && flagged != digests.header {
        return refuse(
            InvalidHeaderField,
            c"PDU with another header digest than agreed on",
        );
    }
    Ok(())
}

/// The fields of an ICResp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcResp {
    /// Format version.
    pub pfv: u16,
    /// CPDA: alignment of data that we send, in units of 4 bytes, 0's based.
    pub cpda: u8,
    /// The digests that the connection uses.
    pub digests: Digests,
    /// MAXH2CDATA: the most data in one H2CData, in bytes.
    pub maxh2cdata: u32,
}

/// Validates an ICResp, given the digests that were requested.
///
/// # Errors
/// A [`Refusal`] for an unknown format, a value out of range, or a digest that was not requested.
pub fn ic_resp(answer: IcResp, asked: Digests) -> Verdict {
    use Fatal::InvalidHeaderField;
    if answer.pfv != 0 {
        return refuse(InvalidHeaderField, c"ICResp of an unknown format");
    }
    if answer.cpda > MAX_CPDA {
        return refuse(InvalidHeaderField, c"ICResp with a CPDA above 31");
    }
    if answer.maxh2cdata < MIN_MAXH2CDATA || !answer.maxh2cdata.is_multiple_of(4) {
        return refuse(
            InvalidHeaderField,
            c"ICResp with a MAXH2CDATA below 4096, or not in dwords",
        );
    }
    let unasked = (answer.digests.header && !asked.header) || (answer.digests.data && !asked.data);
    if unasked {
        return refuse(
            InvalidHeaderField,
            c"ICResp with a digest that was not asked for",
        );
    }
    Ok(())
}

/// The direction of a command's data: the two lowest bits of its opcode, or of its type for a Fabrics command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// From the host (us) to the peer.
    ToPeer,
    /// From the peer to the host (us).
    FromPeer,
    /// Bidirectional; no command sent here is.
    Both,
}

impl Transfer {
    /// Decodes the direction from an opcode, or from the type of a Fabrics command.
    pub const fn of(opcode: u8) -> Self {
        match opcode & 0b11 {
            0 => Self::None,
            1 => Self::ToPeer,
            2 => Self::FromPeer,
            _ => Self::Both,
        }
    }
}

/// A command in flight, and the progress of its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// The command is on the admin queue.
    pub admin: bool,
    /// The opcode.
    pub opcode: u8,
    /// The direction of its data.
    pub transfer: Transfer,
    /// The size of its buffer, in bytes.
    pub size: u32,
    /// The data was sent in the command's capsule.
    pub in_capsule: bool,
    /// Bytes requested by R2Ts, whether sent yet or not.
    pub requested: u64,
    /// Bytes received.
    pub received: u64,
    /// An R2T is queued behind one that is being served.
    pub r2t_waits: bool,
    /// The response has been received: no further PDU may refer to the command, even before it completes.
    pub ended: bool,
}

impl Command {
    /// Returns whether success implies that the whole buffer was transferred. Other commands may transfer less (log
    /// pages, security receive), and get a zeroed buffer.
    const fn moves_all(&self) -> bool {
        match (self.admin, self.opcode) {
            (true, admin::IDENTIFY) => true,
            (true, _) => false,
            (false, io::WRITE | io::READ | io::COMPARE | io::ZONE_APPEND) => true,
            // Authentication Receive: messages may be shorter than the allocation length.
            (false, FABRICS) => false,
            // Any other read of an I/O queue is passed on with its whole buffer, so none of it may be stale.
            (false, _) => matches!(self.transfer, Transfer::FromPeer),
        }
    }

    /// Returns whether the whole buffer was transferred.
    fn is_moved(&self) -> bool {
        let size = u64::from(self.size);
        match self.transfer {
            Transfer::None | Transfer::Both => true,
            Transfer::ToPeer => self.in_capsule || self.requested == size,
            Transfer::FromPeer => self.received == size,
        }
    }
}

/// Validates an R2T for this part of a command's data.
///
/// # Errors
/// A [`Refusal`] unless the command sends data outside its capsule, and this is the next part of it.
pub fn r2t(command: &Command, offset: u32, length: u32) -> Verdict {
    use Fatal::{InvalidHeaderField, LimitExceeded, OutOfRange, PduSequence};
    if command.ended {
        return refuse(PduSequence, c"R2T after the response");
    }
    if command.transfer != Transfer::ToPeer || command.in_capsule || command.size == 0 {
        return refuse(PduSequence, c"R2T for a command that has no data to send");
    }
    if command.r2t_waits {
        return refuse(LimitExceeded, c"R2T while two others are not answered");
    }
    if u64::from(offset) != command.requested {
        return refuse(InvalidHeaderField, c"R2T that is not for the next byte");
    }
    let end = u64::from(offset).saturating_add(u64::from(length));
    if length == 0 || end > u64::from(command.size) {
        return refuse(OutOfRange, c"R2T for nothing, or beyond the command's data");
    }
    Ok(())
}

/// Validates a C2HData with this part of a command's data. `flags` are those of the PDU, `length` is the header's
/// data length, and `room` the bytes behind the PDU's data offset, without a digest.
///
/// # Errors
/// A [`Refusal`] unless the command reads, and this is the next part of its data.
pub fn c2h_data(command: &Command, offset: u32, length: u32, flags: u8, room: u32) -> Verdict {
    use Fatal::{InvalidHeaderField, OutOfRange, PduSequence};
    if command.ended {
        return refuse(PduSequence, c"C2HData after the response");
    }
    if command.transfer != Transfer::FromPeer || command.size == 0 {
        return refuse(PduSequence, c"C2HData for a command that reads nothing");
    }
    if length == 0 || length != room {
        return refuse(
            InvalidHeaderField,
            c"C2HData whose length is not that of its data",
        );
    }
    if u64::from(offset) != command.received {
        return refuse(
            InvalidHeaderField,
            c"C2HData that does not begin at the next byte",
        );
    }
    let end = u64::from(offset).saturating_add(u64::from(length));
    if end > u64::from(command.size) {
        return refuse(OutOfRange, c"C2HData beyond the command's buffer");
    }
    let success = flags & FLAG_SUCCESS != 0;
    if success && flags & FLAG_LAST_PDU == 0 {
        return refuse(
            InvalidHeaderField,
            c"C2HData with success that is not the last",
        );
    }
    if success && command.moves_all() && end != u64::from(command.size) {
        return refuse(PduSequence, c"success before all data has come");
    }
    Ok(())
}

/// Validates the response of a command.
///
/// # Errors
/// A [`Refusal`] if the command has ended already, or succeeds without having transferred its data.
pub fn response(command: &Command, success: bool) -> Verdict {
    if command.ended {
        return refuse(Fatal::PduSequence, c"a second response to one command");
    }
    if success && command.moves_all() && !command.is_moved() {
        return refuse(
            Fatal::PduSequence,
            c"success of a command whose data was not moved",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
