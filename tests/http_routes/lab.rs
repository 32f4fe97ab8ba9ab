//! One sample object of every kind, as in OPI's documentation, and the objects that the samples refer
//! to.

use std::path::Path;

use serde_json::{Value, json};

use crate::case::Case;
use crate::common::{base64, dhchap_key, free_port, nqn_of, pcie_spec, tcp_spec, with};
use crate::routes::Routes;

/// Creates the objects that the cases refer to: volumes, a subsystem with a listener, and a remote
/// controller for a path to it. Returns the listener's port.
pub async fn base(routes: &Routes) -> u16 {
    let volume = json!({ "block_size": 512, "blocks_count": 2048 });
    for id in ["one", "two", "shown"] {
        routes
            .ok(
                "CreateMallocVolume",
                "",
                &format!("malloc_volume_id={id}"),
                Some(&volume),
            )
            .await;
    }
    let subsystem = json!({ "spec": { "nqn": nqn_of("base") } });
    routes
        .ok(
            "CreateNvmeSubsystem",
            "",
            "nvme_subsystem_id=base",
            Some(&subsystem),
        )
        .await;
    // Without a controller, so that its first host can be added.
    let closed = json!({ "spec": { "nqn": nqn_of("closed") } });
    let id = "nvme_subsystem_id=closed";
    routes
        .ok("CreateNvmeSubsystem", "", id, Some(&closed))
        .await;
    let parent = "nvmeSubsystems/base";
    // A different UUID: the exported volume and the namespace attached by the path coexist in one
    // process, and bdev UUIDs are unique.
    let uuid = "2f0ac35e-9f3c-4f4b-8f0e-0a6c5d7ed1a1";
    let shown =
        json!({ "spec": { "volume_name_ref": "volumes/shown", "uuid": uuid, "nguid": uuid } });
    routes
        .ok(
            "CreateNvmeNamespace",
            parent,
            "nvme_namespace_id=shown",
            Some(&shown),
        )
        .await;
    let port = free_port();
    routes
        .ok(
            "CreateNvmeController",
            parent,
            "nvme_controller_id=tcp",
            Some(&tcp_spec(port)),
        )
        .await;
    let remote = json!({ "multipath": "NVME_MULTIPATH_DISABLE" });
    let id = "nvme_remote_controller_id=remote";
    routes
        .ok("CreateNvmeRemoteController", "", id, Some(&remote))
        .await;
    routes
        .ok(
            "CreateVirtioScsiTarget",
            "",
            "virtio_scsi_target_id=one",
            Some(&json!({})),
        )
        .await;
    routes
        .ok(
            "CreateVirtioScsiTarget",
            "",
            "virtio_scsi_target_id=two",
            Some(&json!({})),
        )
        .await;
    port
}

/// Returns a case for every kind that can be created.
pub fn cases(dir: &Path, port: u16) -> Vec<Case> {
    let file = |name: &str| {
        let path = dir.join(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(64 * 512))
            .expect("the file can be created");
        path.display().to_string()
    };
    let volume = || json!({ "block_size": 512, "blocks_count": 64 });
    let on_volume = |more: Value| with(more, "volume_name_ref", json!("volumes/one"));
    let pcie = json!({ "port_id": 0, "physical_function": 1, "virtual_function": 0 });
    let other_volume = || ("volume_name_ref", json!("volumes/two"));
    let namespace = json!({ "spec": {
        "volume_name_ref": "volumes/one", "host_nsid": 5, "eui64": 1_967_554_867_335_598_546_i64,
        "uuid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb", "nguid": "1b4e28ba2fa111d2883fb9a761bde3fb",
    }});
    let subsystem =
        json!({ "spec": { "nqn": nqn_of("a-case"), "serial_number": "s1", "max_namespaces": 9 } });
    let remote = json!({ "multipath": "NVME_MULTIPATH_FAILOVER", "queue_size": 128, "tcp": { "hdgst": true } });
    let path = json!({
        "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "127.0.0.1", "fabrics": {
            "trsvcid": port, "subnqn": nqn_of("base"), "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
            "hostnqn": nqn_of("host"),
        },
    });
    let encrypted = json!({
        "key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=", "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
    });
    let (sub, remotes) = ("nvmeSubsystems/base", "nvmeRemoteControllers/remote");
    let case = Case::new;
    vec![
        case("NullVolume", "", volume(), ("blocks_count", json!(128))),
        case("MallocVolume", "", volume(), ("blocks_count", json!(128))),
        case(
            "AioVolume",
            "",
            json!({ "block_size": 512, "filename": file("a") }),
            ("filename", json!(file("b"))),
        ),
        case(
            "NvmeSubsystem",
            "",
            subsystem,
            ("spec.serial_number", json!("s2")),
        ),
        case(
            "NvmeNamespace",
            sub,
            namespace,
            ("spec.volume_name_ref", json!("volumes/two")),
        ),
        case(
            "NvmeController",
            sub,
            tcp_spec(free_port()),
            ("spec.fabrics_id.trsvcid", json!(free_port().to_string())),
        ),
        case(
            "NvmeController",
            sub,
            pcie_spec(1),
            ("spec.pcie_id.physical_function", json!(2)),
        ),
        case(
            "NvmeHost",
            "nvmeSubsystems/closed",
            json!({ "hostnqn": nqn_of("a-host") }),
            ("hostnqn", json!(nqn_of("another-host"))),
        ),
        case(
            "NvmeNamespaceMask",
            sub,
            json!({ "namespace": format!("{sub}/nvmeNamespaces/later"), "hostnqns": [] }),
            ("hostnqns", json!([nqn_of("a-host")])),
        ),
        case(
            "NvmeRemoteController",
            "",
            remote,
            ("queue_size", json!(64)),
        ),
        case(
            "NvmePath",
            remotes,
            path,
            ("fabrics.hostnqn", json!(nqn_of("other"))),
        ),
        case(
            "NvmeCredential",
            remotes,
            json!({ "hostnqn": nqn_of("host"), "dhchap_key": base64(dhchap_key(1)) }),
            ("hostnqn", json!(nqn_of("other"))),
        ),
        case(
            "QosVolume",
            "",
            on_volume(json!({ "limits": { "max": { "rw_bandwidth_mbs": 8 } } })),
            other_volume(),
        ),
        case("EncryptedVolume", "", on_volume(encrypted), other_volume()),
        case(
            "DelayVolume",
            "",
            on_volume(json!({ "avg_read_latency_us": 20 })),
            ("p99_write_latency_us", json!(40)),
        ),
        case(
            "DiscoveryReferral",
            "",
            json!({ "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "192.0.2.1", "trsvcid": 8009 }),
            ("traddr", json!("2001:db8::1")),
        ),
        case(
            "VirtioBlk",
            "",
            on_volume(json!({ "pcie_id": pcie.clone() })),
            other_volume(),
        ),
        case(
            "VirtioScsiTarget",
            "",
            json!({ "max_luns": 3 }),
            ("max_luns", json!(4)),
        ),
        case(
            "VirtioScsiController",
            "",
            json!({ "pcie_id": pcie }),
            ("pcie_id.virtual_function", json!(3)),
        ),
        case(
            "VirtioScsiLun",
            "",
            on_volume(json!({ "target_name_ref": "virtioScsiTargets/one" })),
            ("target_name_ref", json!("virtioScsiTargets/two")),
        ),
    ]
}
