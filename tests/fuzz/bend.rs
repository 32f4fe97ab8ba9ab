//! Mutations of a protocol message, for any transport.

use serde::{Deserialize, Serialize};

/// A mutation.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Bend {
    Nothing,
    /// Flips bits of a byte.
    Byte(u16, u8),
    /// Overrides the declared size.
    Size(u32),
    /// Truncates the message.
    Cut(u16),
}

impl Bend {
    /// Returns the mutated message; its declared size is in the four bytes at `size_at`.
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
