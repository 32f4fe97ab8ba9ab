//! The kinds covered by the generic tests, each with valid sample objects. A kind that gets implemented
//! moves from [`UNIMPLEMENTED`] to [`IMPLEMENTED`].

use serde_json::{Value, json};

pub use super::place::{Lab, Place};
use super::{base64, dhchap_key, nqn_of, tcp_spec};

/// What the generic tests need to know about a kind.
pub struct Kind {
    /// The name of the kind's protobuf message.
    pub message: &'static str,
    /// Returns the n-th of a series of distinct valid objects.
    pub sample: fn(&Place, u16) -> Value,
    /// Updates that succeed on an object without dependents: path and new value.
    pub changes: fn(&Place) -> Vec<(&'static str, Value)>,
    /// Updates that are rejected with INVALID_ARGUMENT, whether or not the object has dependents.
    pub fixed: fn(&Place) -> Vec<(&'static str, Value)>,
}

/// Kinds that implement all six verbs.
pub const IMPLEMENTED: &[Kind] = &[
    Kind {
        message: "NullVolume",
        sample: |place, n| json!({ "block_size": 512, "blocks_count": 64 + i64::from(n), "uuid": place.uuid(n) }),
        changes: |_| vec![("blocks_count", json!(128)), ("block_size", json!(4096))],
        fixed: |_| vec![],
    },
    Kind {
        message: "MallocVolume",
        sample: |place, n| json!({ "block_size": 512, "blocks_count": 64 + i64::from(n), "uuid": place.uuid(n) }),
        changes: |_| vec![("blocks_count", json!(128)), ("block_size", json!(4096))],
        fixed: |_| vec![],
    },
    Kind {
        message: "AioVolume",
        sample: |place, n| json!({ "block_size": 512, "filename": place.file(n), "uuid": place.uuid(n) }),
        changes: |place| {
            vec![
                ("filename", json!(place.file(1000))),
                ("block_size", json!(4096)),
            ]
        },
        fixed: |_| vec![],
    },
    Kind {
        message: "NvmeSubsystem",
        sample: |place, n| {
            json!({ "spec": {
                "nqn": nqn_of(&place.id(n)),
                "serial_number": format!("serial{n}"),
                "model_number": "a model",
                "max_namespaces": 11,
            }})
        },
        changes: |_| {
            vec![
                ("spec.hostnqn", json!("nqn.2022-09.io.spdk:the-host")),
                ("spec.serial_number", json!("another")),
                ("spec.model_number", json!("another model")),
            ]
        },
        fixed: |place| vec![("spec.nqn", json!(nqn_of(&place.id(1000))))],
    },
    Kind {
        message: "NvmeNamespace",
        sample: |place, n| {
            json!({ "spec": {
                "volume_name_ref": place.volume(n),
                "host_nsid": n + 1,
                "uuid": place.uuid(n),
                "nguid": format!("1b4e28ba2fa111d2883f0016d3cd{n:04x}"),
                "eui64": 1_967_554_867_335_598_546_i64 + i64::from(n),
            }})
        },
        changes: |place| vec![("spec.volume_name_ref", json!(place.volume(1000)))],
        fixed: |_| vec![],
    },
    Kind {
        message: "NvmeController",
        sample: |place, n| tcp_spec(place.port(n)),
        changes: |place| {
            vec![(
                "spec.fabrics_id.trsvcid",
                json!(place.port(1000).to_string()),
            )]
        },
        fixed: |_| vec![("spec.nvme_controller_id", json!(77))],
    },
    Kind {
        message: "NvmeHost",
        sample: |_, n| json!({ "hostnqn": nqn_of(&format!("host-{n}")) }),
        changes: |_| vec![("hostnqn", json!(nqn_of("another-host")))],
        fixed: |_| vec![("hostnqn", json!("nqn.2022-09.io.spdk"))],
    },
    Kind {
        message: "NvmeNamespaceMask",
        sample: |place, n| {
            let namespace = format!("{}/nvmeNamespaces/{}", place.parent, place.id(n));
            json!({ "namespace": namespace, "hostnqns": [nqn_of(&format!("host-{n}"))] })
        },
        changes: |_| vec![("hostnqns", json!([nqn_of("another-host"), nqn_of("third")]))],
        fixed: |place| {
            vec![
                ("hostnqns", json!(["nqn.2022-09.io.spdk"])),
                (
                    "namespace",
                    json!(format!("{}/nvmeNamespaces/another", place.parent)),
                ),
            ]
        },
    },
    Kind {
        message: "NvmeCredential",
        sample: |_, n| {
            let key = base64(dhchap_key(1));
            json!({ "hostnqn": nqn_of(&format!("host-{n}")), "dhchap_key": key })
        },
        changes: |_| vec![("hostnqn", json!(nqn_of("another-host")))],
        fixed: |_| vec![("hostnqn", json!("nqn.2022-09.io.spdk"))],
    },
    Kind {
        message: "VirtioBlk",
        sample: |place, n| {
            json!({
                "pcie_id": { "port_id": 0, "physical_function": n, "virtual_function": 0 },
                "volume_name_ref": place.volume(n),
                "max_io_qps": 4,
                "max_limit": { "rw_iops_kiops": n + 1 },
            })
        },
        changes: |place| {
            vec![
                ("pcie_id.physical_function", json!(31)),
                ("volume_name_ref", json!(place.volume(1000))),
                ("max_io_qps", json!(8)),
                ("max_limit.rw_bandwidth_mbs", json!(64)),
            ]
        },
        fixed: |_| {
            vec![
                ("pcie_id.port_id", json!(1)),
                ("max_limit.rd_iops_kiops", json!(5)),
            ]
        },
    },
    Kind {
        message: "VirtioScsiTarget",
        sample: |_, n| json!({ "max_luns": n % 8 + 1 }),
        changes: |_| vec![("max_luns", json!(8))],
        fixed: |_| vec![("max_luns", json!(9))],
    },
    Kind {
        message: "VirtioScsiController",
        sample: |_, n| json!({ "pcie_id": { "port_id": 3, "physical_function": n, "virtual_function": 2 } }),
        changes: |_| vec![("pcie_id.virtual_function", json!(5))],
        fixed: |_| {
            vec![
                ("max_limit.rw_iops_kiops", json!(5)),
                ("min_limit.rd_bandwidth_mbs", json!(5)),
            ]
        },
    },
    Kind {
        message: "VirtioScsiLun",
        sample: |place, n| json!({ "target_name_ref": place.target(n), "volume_name_ref": place.volume(n) }),
        changes: |place| {
            vec![
                ("target_name_ref", json!(place.target(1000))),
                ("volume_name_ref", json!(place.volume(1000))),
            ]
        },
        fixed: |_| vec![("target_name_ref", json!("virtioBlks/a"))],
    },
    Kind {
        message: "NvmeRemoteController",
        sample: |_, n| {
            json!({
                "multipath": "NVME_MULTIPATH_MULTIPATH",
                "io_queues_count": n + 1,
                "queue_size": 128,
                "tcp": { "hdgst": true, "ddgst": false },
            })
        },
        changes: |_| {
            vec![
                ("multipath", json!("NVME_MULTIPATH_FAILOVER")),
                ("queue_size", json!(64)),
                ("tcp.ddgst", json!(true)),
            ]
        },
        fixed: |_| vec![("io_queues_count", json!(-1)), ("queue_size", json!(1))],
    },
    Kind {
        message: "NvmePath",
        sample: |place, n| {
            json!({
                "trtype": "NVME_TRANSPORT_TYPE_TCP",
                "traddr": "127.0.0.1",
                "fabrics": {
                    "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
                    "trsvcid": place.port(n),
                    "subnqn": nqn_of(&place.tag),
                    "hostnqn": "nqn.2022-09.io.spdk:the-host",
                },
            })
        },
        changes: |place| vec![("fabrics.trsvcid", json!(place.port(1000)))],
        fixed: |_| {
            vec![
                ("traddr", json!("a.host")),
                ("fabrics.adrfam", json!("NVME_ADDRESS_FAMILY_IPV6")),
            ]
        },
    },
    Kind {
        message: "QosVolume",
        sample: |place, n| {
            json!({
                "volume_name_ref": place.volume(n),
                "limits": { "max": { "rw_bandwidth_mbs": n + 2 } },
            })
        },
        changes: |place| {
            vec![
                ("limits.max.rd_bandwidth_mbs", json!(1)),
                ("limits.max.rw_iops_kiops", json!(3)),
                ("volume_name_ref", json!(place.volume(1000))),
            ]
        },
        fixed: |_| {
            vec![
                ("limits.max.wr_iops_kiops", json!(5)),
                ("limits.min.rw_iops_kiops", json!(5)),
            ]
        },
    },
    Kind {
        message: "DelayVolume",
        sample: |place, n| {
            json!({
                "volume_name_ref": place.volume(n),
                "avg_read_latency_us": n + 1,
                "p99_write_latency_us": 1000,
            })
        },
        changes: |place| {
            vec![
                ("avg_read_latency_us", json!(50)),
                ("p99_read_latency_us", json!(500)),
                ("avg_write_latency_us", json!(50)),
                ("p99_write_latency_us", json!(10)),
                ("volume_name_ref", json!(place.volume(1000))),
            ]
        },
        fixed: |_| {
            vec![
                ("avg_read_latency_us", json!(60_000_001)),
                ("p99_write_latency_us", json!(-1)),
            ]
        },
    },
    Kind {
        message: "DiscoveryReferral",
        sample: |place, n| {
            json!({
                "trtype": "NVME_TRANSPORT_TYPE_TCP",
                "traddr": "127.0.0.1",
                "trsvcid": place.port(n),
                "subnqn": nqn_of(&place.id(n)),
            })
        },
        changes: |_| {
            vec![
                ("trtype", json!("NVME_TRANSPORT_TYPE_RDMA")),
                ("traddr", json!("2001:db8::7")),
                ("trsvcid", json!(8010)),
                ("subnqn", json!("nqn.2014-08.org.nvmexpress.discovery")),
            ]
        },
        fixed: |_| {
            vec![
                ("trtype", json!("NVME_TRANSPORT_TYPE_PCIE")),
                ("traddr", json!("0.0.0.0")),
                ("trsvcid", json!(65_536)),
            ]
        },
    },
    Kind {
        message: "EncryptedVolume",
        sample: |place, n| {
            json!({
                "volume_name_ref": place.volume(n),
                "key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=",
                "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
            })
        },
        changes: |place| vec![("volume_name_ref", json!(place.volume(1000)))],
        fixed: |_| vec![("cipher", json!("ENCRYPTION_TYPE_AES_CBC_128"))],
    },
];

/// Read-only kinds: discovered on the peer of a remote controller.
pub const OBSERVED: &[&str] = &["NvmeRemoteNamespace"];

/// Kinds whose methods all return UNIMPLEMENTED.
pub const UNIMPLEMENTED: &[&str] = &[];
