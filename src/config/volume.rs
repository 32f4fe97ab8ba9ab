//! Volumes of the configuration, created at start.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::ConfigError;
use crate::backend::{MAX_BLOCK_SIZE, check_uuid, is_block_size, parse_uuid};
use crate::error::Violations;

/// A volume created at start; a read-only object of the API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Volume {
    /// Memory of this process.
    Malloc {
        /// The bdev's name.
        name: String,
        /// Size, in MiB.
        #[serde(rename = "size-mib")]
        size_mib: u64,
        /// Block size, in bytes.
        #[serde(rename = "block-size", default = "default_block_size")]
        block_size: u32,
        /// UUID seen by hosts; if absent it is derived, and the same at each start.
        #[serde(default)]
        uuid: Option<String>,
    },
    /// Discards writes and reads zeroes.
    Null {
        /// The bdev's name.
        name: String,
        /// Size, in MiB.
        #[serde(rename = "size-mib")]
        size_mib: u64,
        /// Block size, in bytes.
        #[serde(rename = "block-size", default = "default_block_size")]
        block_size: u32,
        /// UUID seen by hosts; if absent it is derived, and the same at each start.
        #[serde(default)]
        uuid: Option<String>,
    },
    /// A file or a kernel block device.
    Aio {
        /// The bdev's name.
        name: String,
        /// The file.
        filename: String,
        /// Block size, in bytes.
        #[serde(rename = "block-size", default = "default_block_size")]
        block_size: u32,
        /// UUID seen by hosts; if absent it is derived, and the same at each start.
        #[serde(default)]
        uuid: Option<String>,
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

    /// The configured UUID.
    pub fn uuid(&self) -> Option<&str> {
        match self {
            Self::Malloc { uuid, .. } | Self::Null { uuid, .. } | Self::Aio { uuid, .. } => {
                uuid.as_deref()
            }
        }
    }

    /// Refuses a malformed UUID, and one that another volume has.
    fn check_uuid<'a>(&'a self, uuids: &mut BTreeMap<[u8; 16], &'a str>) -> Result<(), String> {
        let Some(text) = self.uuid() else {
            return Ok(());
        };
        let mut violations = Violations::default();
        check_uuid("uuid", text, &mut violations);
        if let Some(uuid) = parse_uuid(text)
            && let Some(other) = uuids.insert(uuid, self.name())
        {
            violations.add("uuid", format!("{text:?} is also that of {other:?}"));
        }
        match violations.iter().next() {
            Some(_) => Err(violations.to_string()),
            None if text.is_empty() => Err("uuid is empty: leave it out, or give one".to_owned()),
            None => Ok(()),
        }
    }

    /// Checks the size. A file has its own size, and may have its own block size.
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

/// The size in bytes has to be below 2^63.
const MAX_SIZE_MIB: u64 = (1 << 43) - 1;

/// Checks what can be checked before SPDK runs.
pub(super) fn check(volumes: Vec<Volume>) -> Result<Vec<Volume>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut uuids = BTreeMap::new();
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
                .and_then(|()| volume.check_uuid(&mut uuids))
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
