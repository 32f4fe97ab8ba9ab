//! The table of data-path measurements. A row more is an entry in [`SCENARIOS`], and where it brings
//! a new way out or a new volume, a variant here and its arm in both targets.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::initiator::Initiator;

/// What is measured side by side on both targets.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// How it is called in tables and on the command line.
    pub name: &'static str,
    /// What lies behind the export.
    pub volume: Volume,
    /// How initiators reach it.
    pub export: Export,
    /// Who does the I/O, one after the other.
    pub initiators: &'static [Initiator],
}

/// What lies behind the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// Memory of the target.
    Malloc,
    /// The same under AES-XTS with 128-bit keys.
    Encrypted,
    /// Nothing: for measurements of configuration.
    Null,
}

/// How initiators reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// NVMe/TCP on loopback.
    NvmeTcp,
    /// The same under TLS 1.3 with a pre-shared key.
    NvmeTcpTls,
    /// An emulated PCIe controller, by vfio-user.
    VfioUser,
    /// A virtio-blk device, by vhost-user.
    VhostUserBlk,
}

impl Export {
    /// Shared memory with the initiator needs hugepages.
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

/// Blocks of both targets' volumes, bytes.
pub const BLOCK_SIZE: u64 = 512;

/// The subsystem of both targets.
pub const NQN: &str = "nqn.2016-06.io.spdk:bench";

/// The ID of the subsystem, and by it the directory of a vfio-user socket.
pub const SUBSYSTEM_ID: &str = "bench";

/// The host that may connect under TLS: a pre-shared key belongs to a pair of names.
pub const HOST_NQN: &str = "nqn.2016-06.io.spdk:bench-host";

/// The key of both targets and the initiator under TLS, in its interchange form.
pub const PSK: &str = "NVMeTLSkey-1:01:QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl9YjiZe:";

/// The key of both targets' encrypted volume: the two halves of AES-XTS, 128 bits each.
pub const VOLUME_KEY: [[u8; 16]; 2] = [[0x5a; 16], [0xc3; 16]];

/// Which I/O, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    RandRead,
    RandWrite,
    /// One block after the other.
    Read,
    Write,
    /// Random, [`READS_OF_MIXED`] percent of it reads.
    RandRw,
}

/// Reads among mixed I/O, percent.
pub const READS_OF_MIXED: u32 = 70;

impl Workload {
    /// fio's and spdk_nvme_perf's word for it.
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
    /// Bytes to an I/O.
    pub bytes: u32,
    /// How many are under way at once.
    pub queue_depth: u32,
}

/// How much of the table is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// A load of each direction: to see that all works.
    Quick,
    /// 4 KiB, random, at three depths; under TLS large ones too.
    Usual,
    /// All sizes and patterns.
    All,
}

impl Scenario {
    /// What is done to the export.
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

/// Where an initiator finds an export.
#[derive(Debug, Clone)]
pub enum Attach {
    /// SPDK's transport identifier, as its keys and values.
    Nvme {
        keys: Vec<(&'static str, String)>,
        /// Whether the initiator's memory must be a single segment, to be shared with the target.
        single_segment: bool,
        /// The file with the pre-shared key for TLS.
        psk: Option<PathBuf>,
    },
    /// The socket of a vhost-user-blk device.
    VhostUserBlk(PathBuf),
}

impl Attach {
    /// NVMe/TCP on `port` of the loopback; under TLS with the key in the file `psk`.
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

    /// A vfio-user controller whose socket is in `directory`.
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

/// As spdk_nvme_perf takes it.
pub fn transport_id(keys: &[(&str, String)]) -> String {
    let pairs: Vec<_> = keys
        .iter()
        .map(|(key, value)| format!("{key}:{value}"))
        .collect();
    pairs.join(" ")
}

/// As fio takes it for a file name, in which a colon would separate files.
pub fn fio_filename(keys: &[(&str, String)]) -> String {
    let pairs: Vec<_> = keys
        .iter()
        .map(|(key, value)| format!("{key}={}", value.replace(':', "\\:")))
        .collect();
    format!("{} ns=1", pairs.join(" "))
}
