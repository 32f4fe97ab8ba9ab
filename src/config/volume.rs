//! The volumes that the configuration names, to be made at start.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::ConfigError;
use crate::backend::{MAX_BLOCK_SIZE, is_block_size};

/// A bdev that is made at start. It is not an object of the API: clients refer to
/// it by its raw name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Volume {
    /// Memory of this process.
    Malloc {
        /// The bdev's name.
        name: String,
        /// Size, MiB.
        #[serde(rename = "size-mib")]
        size_mib: u64,
        /// Bytes to a block.
        #[serde(rename = "block-size", default = "default_block_size")]
        block_size: u32,
    },
    /// Takes writes, forgets them, reads zeroes.
    Null {
        /// The bdev's name.
        name: String,
        /// Size, MiB.
        #[serde(rename = "size-mib")]
        size_mib: u64,
        /// Bytes to a block.
        #[serde(rename = "block-size", default = "default_block_size")]
        block_size: u32,
    },
    /// A file or a kernel block device.
    Aio {
        /// The bdev's name.
        name: String,
        /// The file.
        filename: String,
        /// Bytes to a block.
        #[serde(rename = "block-size", default = "default_block_size")]
        block_size: u32,
    },
}

fn default_block_size() -> u32 {
    512
}

impl Volume {
    /// The bdev's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Malloc { name, .. } | Self::Null { name, .. } | Self::Aio { name, .. } => name,
        }
    }

    /// A file has a size, and may have a block size, of its own.
    fn check_size(&self) -> Result<(), String> {
        let (size_mib, block_size) = match *self {
            Self::Malloc {
                size_mib,
                block_size,
                ..
            }
            | Self::Null {
                size_mib,
                block_size,
                ..
            } => (Some(size_mib), block_size),
            Self::Aio { block_size: 0, .. } => return Ok(()),
            Self::Aio { block_size, .. } => (None, block_size),
        };
        if !is_block_size(block_size.into()) {
            return Err(format!(
                "block-size {block_size} is not a power of two from 512 to {MAX_BLOCK_SIZE}"
            ));
        }
        match size_mib {
            Some(0) => Err("size-mib 0 is no size".to_owned()),
            Some(size) if size > MAX_SIZE_MIB => Err(format!(
                "size-mib {size} is above the most that can be, {MAX_SIZE_MIB}"
            )),
            _ => Ok(()),
        }
    }
}

/// 2^63 bytes are too many.
const MAX_SIZE_MIB: u64 = (1 << 43) - 1;

/// What can be seen to be wrong before SPDK runs.
pub(super) fn check(volumes: Vec<Volume>) -> Result<Vec<Volume>, ConfigError> {
    let mut names = BTreeSet::new();
    for volume in &volumes {
        let name = volume.name();
        let problem = if name.is_empty() {
            Some("a volume's name is empty".to_owned())
        } else if name.contains('/') {
            Some(format!(
                "name {name:?} has a slash, which separates the parts of API names"
            ))
        } else if !names.insert(name) {
            Some(format!("name {name:?} is given twice"))
        } else {
            volume
                .check_size()
                .err()
                .map(|reason| format!("{name:?}: {reason}"))
        };
        if let Some(reason) = problem {
            return Err(ConfigError::Value {
                setting: "volume",
                reason,
            });
        }
    }
    Ok(volumes)
}
