//! PDUs of a target, built byte by byte, without digests.

use super::super::nvme_tcp::kind;

fn pdu(kind: u8, flags: u8, hlen: u8, pdo: u8, plen: usize) -> Vec<u8> {
    let mut bytes = vec![kind, flags, hlen, pdo];
    bytes.extend(u32::try_from(plen).expect("a PDU's length").to_le_bytes());
    bytes
}

/// Builds an ICResp: no digests, MAXH2CDATA 128 KiB.
pub fn ic_resp() -> Vec<u8> {
    let mut bytes = pdu(kind::IC_RESP, 0, 128, 0, 128);
    bytes.resize(128, 0);
    bytes[12..16].copy_from_slice(&0x2_0000_u32.to_le_bytes());
    bytes
}

/// Builds a C2HData PDU. DATAL is the length of `data` unless `told` overrides it.
pub fn c2h_data(cid: u16, offset: u32, data: &[u8], flags: u8, told: Option<u32>) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("a PDU's length");
    let mut bytes = pdu(kind::C2H_DATA, flags, 24, 24, 24 + data.len());
    bytes.extend(cid.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(offset.to_le_bytes());
    bytes.extend(told.unwrap_or(length).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(data);
    bytes
}

/// Builds an R2T.
pub fn r2t(cid: u16, ttag: u16, offset: u32, length: u32) -> Vec<u8> {
    let mut bytes = pdu(kind::R2T, 0, 24, 0, 24);
    bytes.extend(cid.to_le_bytes());
    bytes.extend(ttag.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// Builds a C2HTermReq with this fatal error status.
pub fn term_req(fes: u16) -> Vec<u8> {
    let mut bytes = pdu(kind::C2H_TERM_REQ, 0, 24, 0, 32);
    bytes.extend(fes.to_le_bytes());
    bytes.resize(32, 0);
    bytes
}

/// A response capsule.
#[derive(Debug, Clone, Copy)]
pub struct Resp {
    cid: u16,
    dwords: [u32; 2],
    status: u16,
}

impl Resp {
    /// A successful completion.
    pub fn of(cid: u16) -> Self {
        Self {
            cid,
            dwords: [0; 2],
            status: 0,
        }
    }

    /// Sets dword 0 of the result.
    pub fn with_cdw0(mut self, cdw0: u32) -> Self {
        self.dwords[0] = cdw0;
        self
    }

    /// Sets a 64-bit result.
    pub fn with_value(mut self, value: u64) -> Self {
        let bytes = value.to_le_bytes();
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        self.dwords = [half(0), half(4)];
        self
    }

    /// Sets the status code type and status code.
    pub fn failed(mut self, sct: u8, sc: u8) -> Self {
        self.status = u16::from(sc) | u16::from(sct) << 8;
        self
    }

    /// Encodes the PDU.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = pdu(kind::CAPSULE_RESP, 0, 24, 0, 24);
        for dword in self.dwords {
            bytes.extend(dword.to_le_bytes());
        }
        bytes.extend([0; 4]);
        bytes.extend(self.cid.to_le_bytes());
        bytes.extend((self.status << 1).to_le_bytes());
        bytes
    }
}
