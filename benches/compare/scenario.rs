//! The table of data-path measurements. Another row is an entry in [`SCENARIOS`]; a new kind of export or volume is a
//! variant here and its arm in both targets.

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
    /// What the initiators do.
    pub loads: Loads,
    /// Connections for I/O to each namespace.
    pub connections: u32,
    /// Exported namespaces, each with I/O: the first on the volume, the others on small malloc volumes.
    pub namespaces: u32,
    /// Reactors of the target.
    pub reactors: u32,
    /// Whether it runs only with `--all`, or by name.
    pub only_all: bool,
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
    /// A file in the directory of the results, through the kernel's asynchronous I/O.
    Aio,
    /// A namespace of [`crate::remote::Remote`], over NVMe/TCP on this many paths; the port is known when it runs.
    Remote { paths: u8, port: u16 },
}

/// The I/O of a scenario, beside the extent of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loads {
    /// 4 KiB at three depths; larger, sequential and mixed I/O with `--all`.
    Usual,
    /// Large I/O in any run.
    Sizes,
    /// 4 KiB at these depths; 64 KiB too with `--all`.
    At(&'static [u32]),
    /// 4 KiB, at most this many per second.
    Rate(u32),
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
    /// A virtio-scsi controller with one LUN, over vhost-user.
    VhostUserScsi,
}

impl Export {
    /// Memory shared with the initiator requires hugepages.
    pub fn needs_hugepages(self) -> bool {
        match self {
            Self::NvmeTcp | Self::NvmeTcpTls => false,
            Self::VfioUser | Self::VhostUserBlk | Self::VhostUserScsi => true,
        }
    }
}

/// What most scenarios have in common.
const PLAIN: Scenario = Scenario {
    name: "",
    volume: Volume::Malloc,
    export: Export::NvmeTcp,
    initiators: &[Initiator::Perf],
    loads: Loads::Usual,
    connections: 1,
    namespaces: 1,
    reactors: 1,
    only_all: false,
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nvme-tcp",
        initiators: &[Initiator::Perf, Initiator::Fio],
        ..PLAIN
    },
    Scenario {
        name: "vfio-user",
        export: Export::VfioUser,
        ..PLAIN
    },
    Scenario {
        name: "vhost-user-blk",
        export: Export::VhostUserBlk,
        initiators: &[Initiator::Bdevperf],
        ..PLAIN
    },
    Scenario {
        name: "vhost-user-scsi",
        export: Export::VhostUserScsi,
        initiators: &[Initiator::Bdevperf],
        loads: Loads::At(&[1, 32]),
        ..PLAIN
    },
    Scenario {
        name: "nvme-tcp-tls",
        export: Export::NvmeTcpTls,
        loads: Loads::Sizes,
        ..PLAIN
    },
    Scenario {
        name: "nvme-tcp-encrypted",
        volume: Volume::Encrypted,
        ..PLAIN
    },
    Scenario {
        name: "remote-1-path",
        volume: Volume::Remote { paths: 1, port: 0 },
        loads: Loads::At(&[1, 32]),
        ..PLAIN
    },
    Scenario {
        name: "remote-2-paths",
        volume: Volume::Remote { paths: 2, port: 0 },
        loads: Loads::At(&[1, 32]),
        ..PLAIN
    },
    Scenario {
        name: "aio-file",
        volume: Volume::Aio,
        loads: Loads::At(&[1, 32]),
        ..PLAIN
    },
    Scenario {
        name: "connections-8",
        loads: Loads::At(&[128]),
        connections: 8,
        only_all: true,
        ..PLAIN
    },
    Scenario {
        name: "connections-64",
        loads: Loads::At(&[128]),
        connections: 64,
        ..PLAIN
    },
    Scenario {
        name: "namespaces-100",
        loads: Loads::At(&[1]),
        namespaces: 100,
        ..PLAIN
    },
    Scenario {
        name: "fixed-rate",
        initiators: &[Initiator::Fio],
        loads: Loads::Rate(50_000),
        ..PLAIN
    },
    Scenario {
        name: "two-reactors",
        loads: Loads::At(&[128]),
        connections: 8,
        reactors: 2,
        only_all: true,
        ..PLAIN
    },
];

/// Block size of both targets' volumes, in bytes.
pub const BLOCK_SIZE: u64 = 512;

/// Blocks of the volumes of further namespaces: 1 MiB.
pub const SMALL_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE;

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
    /// I/O in flight to each namespace, on all connections together.
    pub queue_depth: u32,
    /// Connections for I/O to each namespace.
    pub connections: u32,
    /// Maximum I/O per second, for fio.
    pub rate: Option<u32>,
}

impl Load {
    /// Random I/O of 4 KiB on one connection, as fast as it can be.
    pub const fn random(workload: Workload, queue_depth: u32) -> Self {
        Self {
            workload,
            bytes: 4096,
            queue_depth,
            connections: 1,
            rate: None,
        }
    }

    /// Pattern and rate.
    pub fn name(&self) -> String {
        match self.rate {
            Some(rate) => format!("{}, {rate}/s", self.workload.word()),
            None => self.workload.word().to_owned(),
        }
    }
}

/// Extent of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// One load per direction, as a smoke test.
    Quick,
    /// What [`Loads`] says for each run.
    Usual,
    /// All sizes and patterns.
    All,
}

impl Scenario {
    /// The loads of the scenario.
    pub fn loads(&self, extent: Extent) -> Vec<Load> {
        use Workload::{RandRead, RandRw, RandWrite, Read, Write};
        let mut loads = Vec::new();
        let mut add = |workloads: &[Workload], kib: u32, depths: &[u32]| {
            for &workload in workloads {
                loads.extend(depths.iter().map(|&queue_depth| Load {
                    bytes: kib << 10,
                    connections: self.connections,
                    rate: match self.loads {
                        Loads::Rate(rate) => Some(rate),
                        _ => None,
                    },
                    ..Load::random(workload, queue_depth)
                }));
            }
        };
        let (random, all) = (&[RandRead, RandWrite], extent == Extent::All);
        match self.loads {
            Loads::Rate(_) => add(random, 4, &[32]),
            Loads::At(depths) => {
                add(random, 4, depths);
                if all {
                    add(random, 64, depths);
                }
            }
            Loads::Usual | Loads::Sizes if extent == Extent::Quick => add(random, 4, &[32]),
            Loads::Usual | Loads::Sizes => {
                add(random, 4, &[1, 32, 128]);
                let sizes = self.loads == Loads::Sizes;
                if all || sizes {
                    add(random, if sizes { 16 } else { 8 }, &[32]);
                    add(random, 64, &[1, 32]);
                }
                if sizes {
                    add(random, 128, &[32]);
                }
                if all {
                    add(&[Read, Write], 128, &[32]);
                    add(&[RandRw], 4, &[32]);
                }
            }
        }
        loads
    }
}
