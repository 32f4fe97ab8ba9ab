//! The table of data-path measurements. Another row is an entry in [`SCENARIOS`]; a new kind of export or volume is a
//! variant here and its arm in both targets.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::initiator::Initiator;

/// A measurement on both targets.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Name in tables and on the command line.
    pub name: &'static str,
    /// The exported volume.
    pub volume: Volume,
    /// The export.
    pub export: Export,
    /// The initiators, run one after the other.
    pub initiators: &'static [Initiator],
}

/// An exported volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// In the target's memory.
    Malloc,
    /// In memory, under AES-XTS with 128-bit keys.
    Encrypted,
    /// Without data, for measurements of configuration.
    Null,
}

/// An export to initiators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// NVMe/TCP on loopback.
    NvmeTcp,
    /// NVMe/TCP with TLS 1.3 and a pre-shared key, on loopback.
    NvmeTcpTls,
    /// An emulated PCIe controller, over vfio-user.
    VfioUser,
    /// A virtio-blk device, over vhost-user.
    VhostUserBlk,
}

impl Export {
    /// Memory shared with the initiator requires hugepages.
    pub fn needs_hugepages(self) -> bool {
        match self {
            Self::NvmeTcp | Self::NvmeTcpTls => false,
            Self::VfioUser | Self::VhostUserBlk => true,
        }
    }
}

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nvme-tcp",
        volume: Volume::Malloc,
        export: Export::NvmeTcp,
        initiators: &[Initiator::Perf, Initiator::Fio],
    },
    Scenario {
        name: "vfio-user",
        volume: Volume::Malloc,
        export: Export::VfioUser,
        initiators: &[Initiator::Perf],
    },
    Scenario {
        name: "vhost-user-blk",
        volume: Volume::Malloc,
        export: Export::VhostUserBlk,
        initiators: &[Initiator::Bdevperf],
    },
    Scenario {
        name: "nvme-tcp-tls",
        volume: Volume::Malloc,
        export: Export::NvmeTcpTls,
        initiators: &[Initiator::Perf],
    },
    Scenario {
        name: "nvme-tcp-encrypted",
        volume: Volume::Encrypted,
        export: Export::NvmeTcp,
        initiators: &[Initiator::Perf],
    },
];

/// Block size of both targets' volumes, in bytes.
pub const BLOCK_SIZE: u64 = 512;

/// NQN of both targets' subsystem.
pub const NQN: &str = "nqn.2016-06.io.spdk:bench";

/// ID of the subsystem, which also names the directory of a vfio-user socket.
pub const SUBSYSTEM_ID: &str = "bench";

/// NQN of the host for TLS: a pre-shared key belongs to a pair of NQNs.
pub const HOST_NQN: &str = "nqn.2016-06.io.spdk:bench-host";

/// Pre-shared key for TLS, in interchange format.
pub const PSK: &str = "NVMeTLSkey-1:01:QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl9YjiZe:";

/// Key of both targets' encrypted volume: the two halves for AES-XTS, 128 bits each.
pub const VOLUME_KEY: [[u8; 16]; 2] = [[0x5a; 16], [0xc3; 16]];

/// I/O pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    RandRead,
    RandWrite,
    /// Sequential.
    Read,
    Write,
    /// Random, with [`READS_OF_MIXED`] percent reads.
    RandRw,
}

/// Percentage of reads in mixed I/O.
pub const READS_OF_MIXED: u32 = 70;

impl Workload {
    /// Name of the pattern in fio and spdk_nvme_perf.
    pub fn word(self) -> &'static str {
        match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRw => "randrw",
        }
    }
}

/// One kind of I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Load {
    pub workload: Workload,
    /// I/O size, in bytes.
    pub bytes: u32,
    /// I/O in flight.
    pub queue_depth: u32,
}

/// Extent of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// One load per direction, as a smoke test.
    Quick,
    /// 4 KiB random I/O at three depths; with TLS also large I/O.
    Usual,
    /// All sizes and patterns.
    All,
}

impl Scenario {
    /// The loads of the scenario.
    pub fn loads(&self, extent: Extent) -> Vec<Load> {
        use Workload::{RandRead, RandRw, RandWrite, Read, Write};
        let depths: &[u32] = match extent {
            Extent::Quick => &[32],
            Extent::Usual | Extent::All => &[1, 32, 128],
        };
        let mut loads = Vec::new();
        let mut add = |workloads: &[Workload], kib: u32, depths: &[u32]| {
            for &workload in workloads {
                loads.extend(depths.iter().map(|&queue_depth| Load {
                    workload,
                    bytes: kib << 10,
                    queue_depth,
                }));
            }
        };
        add(&[RandRead, RandWrite], 4, depths);
        let tls = self.export == Export::NvmeTcpTls;
        if extent == Extent::All || extent == Extent::Usual && tls {
            add(&[RandRead, RandWrite], 64, &[1, 32]);
        }
        if extent == Extent::All {
            add(&[RandRead, RandWrite], if tls { 16 } else { 8 }, &[32]);
            add(&[Read, Write], 128, &[32]);
            add(&[RandRw], 4, &[32]);
        }
        loads
    }
}

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
    /// Socket of a vhost-user-blk device.
    VhostUserBlk(PathBuf),
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
