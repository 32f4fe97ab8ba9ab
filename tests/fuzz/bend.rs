//! Messages of any door, made wrong in one place.

use serde::{Deserialize, Serialize};

/// Where.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Bend {
    Nothing,
    /// Bits of this byte are turned.
    Byte(u16, u8),
    /// It tells of this size.
    Size(u32),
    /// So much of it is sent.
    Cut(u16),
}

impl Bend {
    /// The message, made wrong; it tells of its size in the four bytes from `size_at` on.
    pub fn bent(self, mut message: Vec<u8>, size_at: usize) -> Vec<u8> {
        match self {
            Self::Nothing => {}
            Self::Byte(at, bits) => {
                let length = message.len();
                message[usize::from(at) % length] ^= bits;
            }
            Self::Size(size) => message[size_at..size_at + 4].copy_from_slice(&size.to_le_bytes()),
            Self::Cut(length) => message.truncate(length.into()),
        }
        message
    }
}
