//! Validates the common header: the PDU's place in the sequence, and its lengths against its type.

use super::{
    CAPSULE_HEADER, COMMON_HEADER, Connection, DATA_HEADER, DATA_OFFSET_MAX, Fatal, IC_REQ, Phase,
    Refusal, TERM_REQ_MAX, Verdict, at, flag, kind,
};

/// Validates the first 8 bytes of a PDU. Header, padding, data and digests are consistent after that.
///
/// # Errors
/// The PDU is out of sequence in this phase, or a length does not match its type.
#[inline]
pub fn common_header(connection: &Connection, bytes: [u8; COMMON_HEADER]) -> Verdict {
    let [kind, flags, hlen, pdo, plen @ ..] = bytes;
    let header = Header {
        kind,
        flags,
        hlen: u32::from(hlen),
        pdo: u32::from(pdo),
        plen: u32::from_le_bytes(plen),
    };
    header.is_in_order(connection.phase)?;
    match kind {
        kind::IC_REQ => header.has_lengths(IC_REQ, IC_REQ, IC_REQ),
        kind::H2C_TERM_REQ => {
            header.has_lengths(DATA_HEADER, DATA_HEADER.saturating_add(1), TERM_REQ_MAX)
        }
        kind::CAPSULE_CMD => header.is_capsule(connection),
        kind::H2C_DATA => header.is_data(connection),
        _ => Err(Refusal::new(Fatal::InvalidField, at::KIND)),
    }
}

struct Header {
    kind: u8,
    flags: u8,
    hlen: u32,
    pdo: u32,
    plen: u32,
}

impl Header {
    fn is_in_order(&self, phase: Phase) -> Verdict {
        let right = match phase {
            Phase::New => self.kind == kind::IC_REQ,
            Phase::Unadmitted | Phase::Authenticating | Phase::Discovering | Phase::Connected => {
                self.kind != kind::IC_REQ
            }
            Phase::Closed => false,
        };
        if right {
            Ok(())
        } else {
            Err(Refusal::new(Fatal::Sequence, at::KIND))
        }
    }

    fn has_lengths(&self, hlen: u32, least: u32, most: u32) -> Verdict {
        if self.hlen != hlen {
            return Err(Refusal::new(Fatal::InvalidField, at::HLEN));
        }
        if self.plen < least || self.plen > most {
            return Err(Refusal::new(Fatal::InvalidField, at::PLEN));
        }
        Ok(())
    }

    fn is_capsule(&self, connection: &Connection) -> Verdict {
        self.has_lengths(CAPSULE_HEADER, CAPSULE_HEADER, u32::MAX)?;
        self.has_header_digest(connection)?;
        let end = connection.header_end(CAPSULE_HEADER);
        if self.plen == end {
            return Ok(());
        }
        self.has_data(connection, end, connection.in_capsule_limit(true))
    }

    fn is_data(&self, connection: &Connection) -> Verdict {
        self.has_lengths(DATA_HEADER, DATA_HEADER, u32::MAX)?;
        self.has_header_digest(connection)?;
        let end = connection.header_end(DATA_HEADER);
        self.has_data(connection, end, connection.transfer_limit())
    }

    fn has_header_digest(&self, connection: &Connection) -> Verdict {
        if (self.flags & flag::HEADER_DIGEST != 0) == connection.header_digest {
            Ok(())
        } else {
            Err(Refusal::new(Fatal::InvalidField, at::FLAGS))
        }
    }

    /// Checks that data begins after the header and aligned, and that it has 1 to `limit` bytes.
    fn has_data(&self, connection: &Connection, header_end: u32, limit: u32) -> Verdict {
        if (self.flags & flag::DATA_DIGEST != 0) != connection.data_digest {
            return Err(Refusal::new(Fatal::InvalidField, at::FLAGS));
        }
        let alignment = u32::from(connection.cpda)
            .saturating_add(1)
            .saturating_mul(4);
        let is_aligned = self.pdo.checked_rem(alignment) == Some(0);
        if self.pdo < header_end || self.pdo > DATA_OFFSET_MAX || !is_aligned {
            return Err(Refusal::new(Fatal::InvalidField, at::PDO));
        }
        let before = u64::from(self.pdo).saturating_add(u64::from(connection.data_digest_length()));
        match u64::from(self.plen).checked_sub(before) {
            None | Some(0) => Err(Refusal::new(Fatal::InvalidField, at::PLEN)),
            Some(length) if length > u64::from(limit) => {
                Err(Refusal::new(Fatal::LimitExceeded, at::PLEN))
            }
            Some(_) => Ok(()),
        }
    }
}
