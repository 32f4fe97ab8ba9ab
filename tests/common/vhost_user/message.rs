//! vhost-user messages; tests can set every field.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Numbers of front-end requests.
pub mod request {
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
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// Message flags.
pub mod flag {
    /// The protocol's version.
    pub const VERSION: u32 = 1;
    /// The message is a reply.
    pub const REPLY: u32 = 1 << 2;
    /// The sender requests a reply with the status (REPLY_ACK).
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// Feature bits of virtio and vhost-user.
pub mod feature {
    pub const SCSI_HOTPLUG: u64 = 1 << 1;
    pub const SCSI_CHANGE: u64 = 1 << 2;
    pub const BLK_DISCARD: u64 = 1 << 13;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const RING_PACKED: u64 = 1 << 34;
}

/// Protocol feature bits.
pub mod protocol {
    pub const MQ: u64 = 1;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// A message.
#[derive(Clone, Debug)]
pub struct Message {
    /// The request number.
    pub request: u32,
    /// The flags, version included.
    pub flags: u32,
    /// Overrides the size in the header.
    pub declared: Option<u32>,
    /// The payload.
    pub body: Vec<u8>,
    /// The ancillary file descriptors.
    pub fds: Vec<Arc<OwnedFd>>,
}

impl Message {
    /// A request without a payload.
    pub fn new(request: u32) -> Self {
        Self {
            request,
            flags: flag::VERSION,
            declared: None,
            body: Vec::new(),
            fds: Vec::new(),
        }
    }

    /// Appends 32-bit words to the payload.
    pub fn u32s<const N: usize>(mut self, words: [u32; N]) -> Self {
        self.body
            .extend(words.iter().flat_map(|word| word.to_le_bytes()));
        self
    }

    /// Appends 64-bit words to the payload.
    pub fn u64s<const N: usize>(mut self, words: [u64; N]) -> Self {
        self.body
            .extend(words.iter().flat_map(|word| word.to_le_bytes()));
        self
    }

    /// Appends bytes to the payload.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self
    }

    /// Adds a file descriptor.
    pub fn fd(mut self, fd: impl AsFd) -> Self {
        let own = fd.as_fd().try_clone_to_owned();
        self.fds
            .push(Arc::new(own.expect("a file descriptor is left")));
        self
    }

    /// Sets flags in addition to the version.
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags |= flags;
        self
    }

    /// Overrides the size in the header.
    pub fn declared(mut self, size: u32) -> Self {
        self.declared = Some(size);
        self
    }

    /// Encodes header and payload.
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len()).expect("a small payload");
        let header = [self.request, self.flags, self.declared.unwrap_or(length)];
        let header = header.iter().flat_map(|word| word.to_le_bytes());
        header.chain(self.body.iter().copied()).collect()
    }

    /// Borrows the file descriptors.
    pub fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(|fd| fd.as_fd()).collect()
    }

    /// Returns the 32-bit word at byte `at` of the payload.
    pub fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.body[at..at + 4].try_into().expect("four bytes"))
    }

    /// Returns the payload's first 64-bit word.
    pub fn number(&self) -> u64 {
        u64::from_le_bytes(self.body[..8].try_into().expect("eight bytes"))
    }
}
