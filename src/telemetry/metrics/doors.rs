//! Metrics of the data path's ends: hosts and their namespaces, connections, paths to remote controllers.

use spdk::bdev::Stats;
use spdk::bdev::nvme::PathState;
use spdk::nvmf;

use super::out::{Labels, Out};
use super::reading::Reading;

type Read = fn(&Stats) -> u64;

/// Kinds of I/O over a path: operations, bytes, ticks.
const PATH_IO: [(&str, [Read; 3]); 3] = [
    (
        "read",
        [
            |of| of.read_ops,
            |of| of.read_bytes,
            |of| of.read_latency_ticks,
        ],
    ),
    (
        "write",
        [
            |of| of.write_ops,
            |of| of.write_bytes,
            |of| of.write_latency_ticks,
        ],
    ),
    (
        "unmap",
        [
            |of| of.unmap_ops,
            |of| of.unmap_bytes,
            |of| of.unmap_latency_ticks,
        ],
    ),
];

impl Reading {
    pub(super) fn write_doors(&self, out: &mut Out) {
        let doors = &self.connections;
        let doors = [
            ("management", doors.management),
            ("nvme_tcp", doors.queues.tcp),
            ("vfio_user", doors.queues.vfio_user),
            ("vhost_user", doors.vhost_user),
        ]
        .map(|(door, number)| (Labels::of([("door", door)]), number));
        out.gauges(
            "opi_spdk_connections",
            "Open connections by what they came to; over NVMe a host has one for each of its queues",
            doors.iter().map(|(labels, number)| (labels, *number)),
        );
        let refused = nvmf::refused()
            .map(|(reason, number)| (Labels::of([("reason", reason.name())]), number));
        let refused: Vec<_> = refused.collect();
        out.counters(
            "opi_spdk_hosts_refused",
            "Attempts of hosts to connect that were refused, by what was wrong",
            refused.iter().map(|(labels, number)| (labels, *number)),
        );
        self.write_subsystems(out);
        self.write_paths(out);
    }

    fn write_subsystems(&self, out: &mut Out) {
        let subsystems: Vec<_> = self
            .subsystems
            .iter()
            .map(|of| (Labels::of([("subsystem", &of.name), ("nqn", &of.nqn)]), of))
            .collect();
        out.gauges(
            "opi_spdk_subsystem_hosts_connected",
            "Connections of hosts to an NVMe subsystem",
            subsystems.iter().map(|(labels, of)| (labels, of.hosts)),
        );
        out.gauges(
            "opi_spdk_subsystem_namespaces",
            "Namespaces of an NVMe subsystem",
            subsystems
                .iter()
                .map(|(labels, of)| (labels, of.namespaces)),
        );
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|of| {
                let id = of.controller_id.to_string();
                let labels = [
                    ("subsystem", of.subsystem.as_str()),
                    ("host", &of.host),
                    ("controller_id", &id),
                ];
                (Labels::of(labels), of)
            })
            .collect();
        out.counters(
            "opi_spdk_host_operations",
            "I/O commands of a host since it has connected",
            hosts.iter().map(|(labels, of)| (labels, of.operations)),
        );
        out.gauges(
            "opi_spdk_host_queues",
            "Queues of a host that is connected",
            hosts.iter().map(|(labels, of)| (labels, of.queues)),
        );
        let namespaces: Vec<_> = self
            .namespaces
            .iter()
            .map(|of| {
                let nsid = of.nsid.to_string();
                Labels::of([
                    ("namespace", &of.name),
                    ("subsystem", &of.subsystem),
                    ("nsid", &nsid),
                    ("volume", &of.volume),
                    ("bdev", &of.bdev),
                ])
            })
            .collect();
        out.gauges(
            "opi_spdk_namespace_info",
            "1 for each namespace: the volume that it shows, whose metrics are the namespace's",
            namespaces.iter().map(|labels| (labels, 1_u8)),
        );
    }

    fn write_paths(&self, out: &mut Out) {
        let paths: Vec<_> = self
            .paths
            .iter()
            .map(|of| {
                let labels = [("path", of.name.as_str()), ("controller", &of.controller)];
                (Labels::of(labels), of)
            })
            .collect();
        let works = |state| matches!(state, PathState::Connected | PathState::Standby);
        out.gauges(
            "opi_spdk_path_connected",
            "Whether a path to a remote controller works, or stands by",
            paths
                .iter()
                .map(|(labels, of)| (labels, u8::from(works(of.state)))),
        );
        let counted = || {
            paths
                .iter()
                .filter_map(|(labels, of)| Some((labels, of.stats.as_ref()?)))
        };
        for (io, [operations, bytes, ticks]) in PATH_IO {
            let name = format!("opi_spdk_path_{io}_operations");
            let help = format!("I/O over a path to a remote controller: {io}");
            out.counters(
                &name,
                &help,
                counted().map(|(labels, of)| (labels, operations(of))),
            );
            let name = format!("opi_spdk_path_{io}_bytes");
            let help = format!("Bytes of I/O over a path to a remote controller: {io}");
            out.counters(
                &name,
                &help,
                counted().map(|(labels, of)| (labels, bytes(of))),
            );
            let name = format!("opi_spdk_path_{io}_seconds");
            let help = format!("Sum of the times of I/O over a path to a remote controller: {io}");
            let seconds = |of: &Stats| ticks(of) as f64 / of.ticks_per_second.max(1) as f64;
            out.counters(
                &name,
                &help,
                counted().map(|(labels, of)| (labels, seconds(of))),
            );
        }
    }
}
