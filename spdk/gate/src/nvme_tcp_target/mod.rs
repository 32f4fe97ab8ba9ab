//! NVMe/TCP, target side: validates the PDUs of a host and their sequence.
//!
//! ```text
//! accept ─► New ─ICReq─► Unadmitted ─Connect succeeds─► Connected
//!            └ ICReq alone   └ one Connect of 1 KiB         └ commands, H2CData
//!                                     ├─► Authenticating ──────┘
//!                                     │    └ commands of up to 4 KiB, one at a time, and AUTH_RECV of any length
//!                                     └─► Discovering: Connect to the discovery service
//!                                          └ commands, with up to 4 KiB inside a capsule
//! ```
//!
//! A PDU passes two checks: [`common_header`] once its first 8 bytes are received, which bounds every length that is
//! read next, then [`capsule`] or [`h2c_data`] once its whole header is received. Layouts: NVMe/TCP transport
//! specification 1.0c, section 3.6; commands: NVMe base specification 2.0.

mod capsule;
mod data;
mod header;
mod queues;
#[cfg(test)]
mod tests;

pub use capsule::capsule;
pub use data::{Expected, h2c_data};
pub use header::common_header;
pub use queues::{HOST_QUEUES_FREE, HOST_QUEUES_MAX, Supply};

/// Bytes of a common header.
pub const COMMON_HEADER: usize = 8;

/// Bytes of a CapsuleCmd header: the common header and a submission queue entry.
pub const CAPSULE_HEADER: u32 = 72;

/// Bytes of an H2CData header, and of a TermReq header.
pub const DATA_HEADER: u32 = 24;

/// Bytes of an ICReq.
pub const IC_REQ: u32 = 128;

/// Bytes of a digest.
pub const DIGEST: u32 = 4;

/// The highest data offset: 32 dwords, the largest alignment that can be negotiated.
pub const DATA_OFFSET_MAX: u32 = 128;

/// Bytes of a TermReq including the header that it refers to.
pub const TERM_REQ_MAX: u32 = 152;

/// Bytes of Connect data, the only data that a connection may send before it is admitted.
pub const CONNECT_DATA: u32 = 1024;

/// Bytes of data of one command until the host has authenticated: one small buffer. Messages of DH-HMAC-CHAP with
/// groups of up to 8,192 bits fit, so an Authentication Receive gets no more, whatever length it allocates. Also what may be
/// inside a capsule for the discovery service, whose connections have one such buffer.
pub const AUTHENTICATION_DATA_MAX: u32 = 4096;

/// In-capsule bytes of an admin or Fabrics command that every target must accept.
pub const CONTROL_DATA_MAX: u32 = 8192;

/// The phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing received yet.
    New,
    /// ICResp was sent; no Connect has succeeded.
    Unadmitted,
    /// Connect has succeeded, and the host has yet to authenticate.
    Authenticating,
    /// Connect to the discovery service has succeeded, which answers any host.
    Discovering,
    /// Connect has succeeded, and the host has authenticated where it has to.
    Connected,
    /// ICResp is being sent, or the connection is in teardown: no PDU may be received.
    Closed,
}

/// What both ends negotiated, and the target's limits.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// The current phase.
    pub phase: Phase,
    /// Whether it is an admin queue.
    pub is_admin: bool,
    /// Headers of commands and data carry a digest.
    pub header_digest: bool,
    /// Data carries a digest.
    pub data_digest: bool,
    /// CPDA as in ICResp: alignment of data in a PDU, in dwords, 0's based.
    pub cpda: u8,
    /// The most in-capsule data of an I/O command, in bytes.
    pub in_capsule_max: u32,
    /// The most data of one command, in bytes.
    pub transfer_max: u32,
}

impl Connection {
    /// Bytes of data that a command may have at most.
    fn transfer_limit(&self) -> u32 {
        match self.phase {
            Phase::Connected | Phase::Discovering => self.transfer_max,
            Phase::Authenticating => self.transfer_max.min(AUTHENTICATION_DATA_MAX),
            _ => CONNECT_DATA,
        }
    }

    /// Bytes of data that may be inside the capsule of a command, and of an admin or fabrics command.
    fn in_capsule_limit(&self, is_control: bool) -> u32 {
        let control = self.in_capsule_max.max(CONTROL_DATA_MAX);
        match self.phase {
            Phase::Connected if is_control => control,
            Phase::Connected => self.in_capsule_max,
            Phase::Authenticating | Phase::Discovering => control.min(AUTHENTICATION_DATA_MAX),
            _ => CONNECT_DATA,
        }
    }

    /// End of a header of `length` bytes including its digest.
    fn header_end(&self, length: u32) -> u32 {
        length.saturating_add(if self.header_digest { DIGEST } else { 0 })
    }

    /// Bytes of the data digest.
    fn data_digest_length(&self) -> u32 {
        if self.data_digest { DIGEST } else { 0 }
    }
}

/// Fatal error status of a C2HTermReq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fatal {
    /// A PDU header field has an invalid value.
    InvalidField = 1,
    /// The PDU is out of sequence.
    Sequence = 2,
    /// Data outside the requested range.
    OutOfRange = 4,
    /// More data than the target accepts.
    LimitExceeded = 5,
    /// A parameter that the target does not support.
    Unsupported = 6,
}

/// Why a PDU ends its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status sent to the host.
    pub fatal: Fatal,
    /// Offset of the invalid field in the PDU header.
    pub offset: u8,
}

impl Refusal {
    const fn new(fatal: Fatal, offset: u8) -> Self {
        Self { fatal, offset }
    }
}

/// The result of a check.
pub type Verdict<T = ()> = Result<T, Refusal>;

/// Field offsets in a common header.
mod at {
    pub const KIND: u8 = 0;
    pub const FLAGS: u8 = 1;
    pub const HLEN: u8 = 2;
    pub const PDO: u8 = 3;
    pub const PLEN: u8 = 4;
}

/// Types of PDUs that a host sends.
mod kind {
    pub const IC_REQ: u8 = 0x00;
    pub const H2C_TERM_REQ: u8 = 0x02;
    pub const CAPSULE_CMD: u8 = 0x04;
    pub const H2C_DATA: u8 = 0x06;
}

/// Flags of a common header.
mod flag {
    pub const HEADER_DIGEST: u8 = 1;
    pub const DATA_DIGEST: u8 = 2;
    pub const LAST: u8 = 4;
}
