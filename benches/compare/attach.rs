//! Addresses of exports, as initiators take them.

use std::path::{Path, PathBuf};

use crate::scenario::{HOST_NQN, NQN};

/// Address of an export for an initiator.
#[derive(Debug, Clone)]
pub enum Attach {
    /// Keys and values of SPDK's transport ID.
    Nvme {
        keys: Vec<(&'static str, String)>,
        /// Whether the initiator's memory has to be a single segment, to be shared with the target.
        single_segment: bool,
        /// File with the pre-shared key for TLS.
        psk: Option<PathBuf>,
    },
    /// Socket of a vhost-user device.
    VhostUser { device: Device, socket: PathBuf },
}

/// A kind of virtio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Blk,
    Scsi,
}

impl Device {
    /// Name of the kind in SPDK's JSON-RPC.
    pub fn word(self) -> &'static str {
        match self {
            Self::Blk => "blk",
            Self::Scsi => "scsi",
        }
    }
}

impl Attach {
    /// NVMe/TCP on `port` of the loopback, with TLS if there is a key file `psk`.
    pub fn tcp(port: u16, psk: Option<PathBuf>) -> Self {
        let mut keys = vec![
            ("trtype", "TCP".to_owned()),
            ("adrfam", "IPv4".to_owned()),
            ("traddr", "127.0.0.1".to_owned()),
            ("trsvcid", port.to_string()),
            ("subnqn", NQN.to_owned()),
        ];
        if psk.is_some() {
            keys.push(("hostnqn", HOST_NQN.to_owned()));
        }
        Self::Nvme {
            keys,
            single_segment: false,
            psk,
        }
    }

    /// A vfio-user controller with its socket in `directory`.
    pub fn vfio_user(directory: &Path) -> Self {
        let keys = [
            ("trtype", "VFIOUSER".to_owned()),
            ("traddr", directory.display().to_string()),
            ("subnqn", NQN.to_owned()),
        ];
        Self::Nvme {
            keys: keys.into(),
            single_segment: true,
            psk: None,
        }
    }
}

/// The form of spdk_nvme_perf.
pub fn transport_id(keys: &[(&str, String)]) -> String {
    let pairs: Vec<_> = keys
        .iter()
        .map(|(key, value)| format!("{key}:{value}"))
        .collect();
    pairs.join(" ")
}

/// The form of fio's file name, in which a colon separates files.
pub fn fio_filename(keys: &[(&str, String)]) -> String {
    let pairs: Vec<_> = keys
        .iter()
        .map(|(key, value)| format!("{key}={}", value.replace(':', "\\:")))
        .collect();
    format!("{} ns=1", pairs.join(" "))
}
