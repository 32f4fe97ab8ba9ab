//! Messages of a client: a header, a payload whose size matches the request, and exactly the fds that the request
//! takes.

use super::inflight::Area;
use super::memory::Table;
use super::ring::Addresses;
use super::{Fault, MAX_RINGS, u32_at, u64_at};

/// Bytes of a header: request, flags, size of the payload.
pub const HEADER: usize = 12;

/// The largest payload accepted, in bytes: that of the configuration space.
pub const MAX_PAYLOAD: usize = 12 + CONFIG_SPACE;

/// Bytes of the configuration space.
pub const CONFIG_SPACE: usize = 256;

/// The most fds of a message: one per memory region.
pub const MAX_FDS: usize = 8;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The bits of a ring's index, and the flag that no fd is attached.
const RING_MASK: u64 = 0xff;
const NO_FD: u64 = 1 << 8;

/// Request numbers.
mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
}

/// A valid header: its payload size is possible for its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The request's number, a known one.
    pub request: u32,
    /// The client asks for an acknowledgement.
    pub needs_reply: bool,
    /// Payload size in bytes, at most [`MAX_PAYLOAD`].
    pub size: usize,
}

impl Header {
    /// Parses and validates a header, before any of the payload is read.
    ///
    /// # Errors
    /// A different version, a reply, unknown flags, an unknown request, or a payload size that the request cannot
    /// have.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, Fault> {
        let (request, flags, size) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8));
        if flags & VERSION_MASK != VERSION {
            return Err(Fault::new("a message's version must be 1", flags.into()));
        }
        if flags & !(VERSION_MASK | NEED_REPLY) != 0 {
            return Err(Fault::new(
                "a request may have no flag but that it needs a reply",
                flags.into(),
            ));
        }
        let sizes = sizes(request).ok_or(Fault::new("the request is not known", request.into()))?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size < sizes.0 || size > sizes.1 {
            return Err(Fault::new(
                "a message's size must be that of its request",
                size as u64,
            ));
        }
        Ok(Self {
            request,
            needs_reply: flags & NEED_REPLY != 0,
            size,
        })
    }

    /// Returns the header of the reply, with a payload of `size` bytes.
    pub fn reply(&self, size: u32) -> [u8; HEADER] {
        header(self.request, VERSION | REPLY, size)
    }
}

/// Returns the backend request that notifies a client of a changed configuration space; no reply is requested.
pub fn config_changed() -> [u8; HEADER] {
    header(2, VERSION, 0)
}

fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let words = [request, flags, size].map(u32::to_le_bytes);
    for (to, from) in bytes.iter_mut().zip(words.iter().flatten()) {
        *to = *from;
    }
    bytes
}

/// Returns the least and the largest payload size of a request.
const fn sizes(request: u32) -> Option<(usize, usize)> {
    Some(match request {
        request::GET_FEATURES
        | request::SET_OWNER
        | request::RESET_OWNER
        | request::GET_PROTOCOL_FEATURES
        | request::GET_QUEUE_NUM => (0, 0),
        request::SET_FEATURES
        | request::SET_VRING_NUM
        | request::SET_VRING_BASE
        | request::GET_VRING_BASE
        | request::SET_VRING_KICK
        | request::SET_VRING_CALL
        | request::SET_VRING_ERR
        | request::SET_PROTOCOL_FEATURES
        | request::SET_VRING_ENABLE => (8, 8),
        request::SET_MEM_TABLE => (8, 8 + 32 * 8),
        request::SET_LOG_BASE => (16, 16),
        // QEMU sends an empty payload, other clients a meaningless number.
        request::SET_LOG_FD | request::SET_BACKEND_REQ_FD => (0, 8),
        request::SET_VRING_ADDR => (40, 40),
        request::GET_CONFIG | request::SET_CONFIG => (12, MAX_PAYLOAD),
        request::GET_INFLIGHT_FD | request::SET_INFLIGHT_FD => (20, 24),
        _ => return None,
    })
}

/// A range of the configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub offset: usize,
    /// Number of bytes.
    pub length: usize,
    /// Flags, which are echoed in the reply.
    pub flags: u32,
}

/// A message that is valid by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the specification")]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, and nothing here allocates"
)]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Table),
    SetLogBase { size: u64, offset: u64 },
    SetLogFd,
    SetRingSize { ring: usize, size: u32 },
    SetRingAddresses { ring: usize, addresses: Addresses },
    SetRingBase { ring: usize, base: u32 },
    GetRingBase { ring: usize },
    SetKick { ring: usize },
    SetCall { ring: usize },
    SetError { ring: usize },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetRingEnable { ring: usize, enable: bool },
    SetBackendChannel,
    GetConfig(Span),
    SetConfig(Span),
    GetInflight(Area),
    SetInflight(Area),
}

impl Message {
    /// Parses a payload of the size in its header, received together with `fds` file descriptors.
    ///
    /// # Errors
    /// An invalid field, or a number of fds that does not match the request.
    pub fn parse(header: &Header, payload: &[u8], fds: usize) -> Result<Self, Fault> {
        let (message, expected) = Self::with_fds(header.request, payload)?;
        if fds != expected {
            return Err(Fault::new(
                "a message must bring the fds of its request, no more and no fewer",
                fds as u64,
            ));
        }
        Ok(message)
    }

    /// Returns the message, and how many fds it takes.
    fn with_fds(request: u32, payload: &[u8]) -> Result<(Self, usize), Fault> {
        let number = u64_at(payload, 0);
        let ring = || ring(u32_at(payload, 0).into());
        let value = u32_at(payload, 4);
        Ok(match request {
            request::GET_FEATURES => (Self::GetFeatures, 0),
            request::SET_FEATURES => (Self::SetFeatures(number), 0),
            request::SET_OWNER => (Self::SetOwner, 0),
            request::RESET_OWNER => (Self::ResetOwner, 0),
            request::SET_MEM_TABLE => {
                let table = Table::parse(payload)?;
                (Self::SetMemTable(table), table.regions().len())
            }
            request::SET_LOG_BASE => {
                let offset = u64_at(payload, 8);
                let size = number;
                (Self::SetLogBase { size, offset }, 1)
            }
            request::SET_LOG_FD => (Self::SetLogFd, 1),
            request::SET_VRING_NUM => {
                let size = value;
                (
                    Self::SetRingSize {
                        ring: ring()?,
                        size,
                    },
                    0,
                )
            }
            request::SET_VRING_ADDR => {
                let addresses = Addresses {
                    flags: value,
                    descriptors: u64_at(payload, 8),
                    used: u64_at(payload, 16),
                    available: u64_at(payload, 24),
                    log: u64_at(payload, 32),
                };
                let ring = ring()?;
                (Self::SetRingAddresses { ring, addresses }, 0)
            }
            request::SET_VRING_BASE => {
                let base = value;
                (
                    Self::SetRingBase {
                        ring: ring()?,
                        base,
                    },
                    0,
                )
            }
            request::GET_VRING_BASE => (Self::GetRingBase { ring: ring()? }, 0),
            request::SET_VRING_KICK => ring_fd(number, |ring| Self::SetKick { ring })?,
            request::SET_VRING_CALL => ring_fd(number, |ring| Self::SetCall { ring })?,
            request::SET_VRING_ERR => ring_fd(number, |ring| Self::SetError { ring })?,
            request::GET_PROTOCOL_FEATURES => (Self::GetProtocolFeatures, 0),
            request::SET_PROTOCOL_FEATURES => (Self::SetProtocolFeatures(number), 0),
            request::GET_QUEUE_NUM => (Self::GetQueueNum, 0),
            request::SET_VRING_ENABLE => {
                let enable = match value {
                    0 => false,
                    1 => true,
                    other => {
                        return Err(Fault::new("a ring is enabled by 1 or 0", other.into()));
                    }
                };
                let ring = ring()?;
                (Self::SetRingEnable { ring, enable }, 0)
            }
            request::SET_BACKEND_REQ_FD => (Self::SetBackendChannel, 1),
            request::GET_CONFIG => (Self::GetConfig(span(payload)?), 0),
            request::SET_CONFIG => (Self::SetConfig(span(payload)?), 0),
            request::GET_INFLIGHT_FD => (Self::GetInflight(Area::parse(payload)), 0),
            request::SET_INFLIGHT_FD => (Self::SetInflight(Area::parse(payload)), 1),
            other => return Err(Fault::new("the request is not known", other.into())),
        })
    }
}

fn ring(number: u64) -> Result<usize, Fault> {
    let ring = usize::try_from(number).unwrap_or(usize::MAX);
    if ring >= MAX_RINGS {
        return Err(Fault::new("a ring's number must be below 128", number));
    }
    Ok(ring)
}

fn ring_fd(number: u64, message: impl FnOnce(usize) -> Message) -> Result<(Message, usize), Fault> {
    if number & !(RING_MASK | NO_FD) != 0 {
        return Err(Fault::new(
            "a ring's fd comes with its number alone",
            number,
        ));
    }
    let fds = usize::from(number & NO_FD == 0);
    Ok((message(ring(number & RING_MASK)?), fds))
}

fn span(payload: &[u8]) -> Result<Span, Fault> {
    let (offset, length) = (u32_at(payload, 0), u32_at(payload, 4));
    let end = u64::from(offset).saturating_add(length.into());
    if length == 0 || end > CONFIG_SPACE as u64 {
        return Err(Fault::new(
            "a part of the configuration space must lie in its 256 bytes",
            end,
        ));
    }
    let bytes = payload.len().saturating_sub(12) as u64;
    if bytes != u64::from(length) {
        return Err(Fault::new(
            "the part of the configuration space must be as long as it says",
            bytes,
        ));
    }
    Ok(Span {
        offset: usize::try_from(offset).unwrap_or(usize::MAX),
        length: usize::try_from(length).unwrap_or(usize::MAX),
        flags: u32_at(payload, 8),
    })
}
