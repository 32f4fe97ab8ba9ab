//! The reference client's own suite, `godpu storage test`: the same calls with the same values in the
//! same order, in an equivalent lab (volumes `Malloc0` and `Malloc1`, a file of 64 blocks, and a target
//! in another process with and without TLS).

mod common;

use std::time::{Duration, Instant};

use common::{Client, Options, PSK, Resource, Target, base64, free_port, name_of, tcp_spec};
use serde_json::{Value, json};
use uuid::Uuid;

/// The client's time limit for all calls together, part of which it sleeps. Here the machine has two
/// cores, and SPDK uses both.
const ALL_CALLS: Duration = Duration::from_secs(10);

const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:feb98abe-d51f-40c8-b348-2753f3571d3c";
const SUBNQN: &str = "nqn.2016-06.io.spdk:cnode1";
const AIO_FILE: &str = "/tmp/aio_bdev_file";

#[tokio::test]
async fn every_call_of_the_reference_clients_suite_succeeds() {
    let config = tempfile::NamedTempFile::with_suffix(".toml").expect("a temporary file");
    let volume =
        |name| format!("[[volume]]\nkind = \"malloc\"\nname = \"{name}\"\nsize-mib = 16\n");
    std::fs::write(config.path(), volume("Malloc0") + &volume("Malloc1"))
        .expect("the file can be written");
    let file = std::fs::File::create(AIO_FILE).expect("/tmp is writable");
    file.set_len(64 * 512).expect("the file can be extended");

    let config = config.path().display().to_string();
    let target = Target::start_with(Options::hugepages().args(["--config", &config])).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let (client, elsewhere) = (target.client().await, peer.client().await);

    let mut took = timed(frontend(&client)).await;
    took += timed(remote_controllers(&client)).await;
    for psk in ["", PSK] {
        let port = export(&elsewhere, psk).await;
        took += timed(paths(&client, port, psk)).await;
        withdraw(&elsewhere).await;
    }
    took += timed(async {
        null_volumes(&client).await;
        aio_volumes(&client).await;
    })
    .await;
    took += timed(middleend(&client)).await;
    assert!(took < ALL_CALLS, "all calls together took {took:?}");

    std::fs::remove_file(AIO_FILE).expect("the file exists");
    peer.stop();
    target.stop();
}

async fn timed(calls: impl Future<Output = ()>) -> Duration {
    let begin = Instant::now();
    calls.await;
    begin.elapsed()
}

/// Exports a volume on the target that the lab calls `spdk`; returns the port.
async fn export(peer: &Client, psk: &str) -> u16 {
    let volume = json!({ "block_size": 512, "blocks_count": 2048 });
    Resource::new(peer, "NullVolume")
        .created("", "export", volume)
        .await;
    let spec = json!({ "spec": { "nqn": SUBNQN, "hostnqn": HOSTNQN, "psk": base64(psk) } });
    let subsystem = name_of(
        &Resource::new(peer, "NvmeSubsystem")
            .created("", "cnode1", spec)
            .await,
    );
    let namespace = json!({ "spec": { "volume_name_ref": "volumes/export" } });
    Resource::new(peer, "NvmeNamespace")
        .created(&subsystem, "ns", namespace)
        .await;
    let port = free_port();
    Resource::new(peer, "NvmeController")
        .created(&subsystem, "tcp", tcp_spec(port))
        .await;
    port
}

async fn withdraw(peer: &Client) {
    Resource::new(peer, "NvmeController")
        .deleted("nvmeSubsystems/cnode1/nvmeControllers/tcp")
        .await;
    Resource::new(peer, "NvmeNamespace")
        .deleted("nvmeSubsystems/cnode1/nvmeNamespaces/ns")
        .await;
    Resource::new(peer, "NvmeSubsystem").deleted("cnode1").await;
    Resource::new(peer, "NullVolume").deleted("export").await;
}

/// The client's sequence of calls for one object, from create to delete.
struct Round<'a> {
    kind: Resource,
    parent: &'a str,
    /// The collection part of names.
    collection: &'a str,
    object: Value,
    update: Value,
}

impl Round<'_> {
    /// Runs the sequence with a client-assigned ID and with a server-assigned one.
    async fn with_and_without(&self, id: &str) {
        for id in [id, ""] {
            let name = self.create(id).await;
            self.kind
                .updated(&name, self.update.clone(), Some(&["*"]))
                .await;
            self.look_and_delete(&name).await;
        }
    }

    async fn create(&self, id: &str) -> String {
        let made = self
            .kind
            .created(self.parent, id, self.object.clone())
            .await;
        let name = name_of(&made);
        let last = name.rsplit('/').next().expect("a name has parts");
        if id.is_empty() {
            Uuid::parse_str(last).unwrap_or_else(|error| panic!("{name}: {error}"));
        } else {
            assert_eq!(last, id);
        }
        assert_eq!(name, format!("{}/{last}", self.collection));
        name
    }

    async fn look_and_delete(&self, name: &str) {
        let listed = self.kind.names(self.parent).await;
        assert!(
            listed.iter().any(|listed| listed == name),
            "{name} is not in {listed:?}"
        );
        self.kind.get(name).await.expect("the object exists");
        self.kind.stats(name).await;
        self.kind.deleted(name).await;
    }
}

async fn frontend(client: &Client) {
    let subsystem = |nqn: &str| {
        json!({ "spec": {
            "model_number": "OPI Model",
            "serial_number": "OPI SN",
            "max_namespaces": 10,
            "hostnqn": HOSTNQN,
            "nqn": nqn,
        }})
    };
    Round {
        kind: Resource::new(client, "NvmeSubsystem"),
        parent: "",
        collection: "nvmeSubsystems",
        object: subsystem("nqn.2022-09.io.spdk:opi3"),
        update: json!({ "spec": { "nqn": "nqn.2022-09.io.spdk:opi3" } }),
    }
    .with_and_without("subsystem-test")
    .await;

    let subsystems = Resource::new(client, "NvmeSubsystem");
    let parent = subsystems
        .created(
            "",
            "controller-test-ss",
            subsystem("nqn.2022-09.io.spdk:opi2"),
        )
        .await;
    let parent = name_of(&parent);
    assert_eq!(parent, "nvmeSubsystems/controller-test-ss");
    Round {
        kind: Resource::new(client, "NvmeController"),
        parent: &parent,
        collection: "nvmeSubsystems/controller-test-ss/nvmeControllers",
        object: controller(5, 6, 7, 8),
        update: controller(8, 7, 6, 5),
    }
    .with_and_without("controller-test")
    .await;
    subsystems.deleted(&parent).await;

    let parent = subsystems
        .created(
            "",
            "namespace-test-ss",
            subsystem("nqn.2022-09.io.spdk:opi1"),
        )
        .await;
    let parent = name_of(&parent);
    let controllers = Resource::new(client, "NvmeController");
    let made = controllers
        .created(&parent, "namespace-test-ctrler", controller(5, 6, 7, 8))
        .await;
    let controller = name_of(&made);
    assert_eq!(
        controller,
        "nvmeSubsystems/namespace-test-ss/nvmeControllers/namespace-test-ctrler"
    );
    let namespace = json!({ "spec": {
        "volume_name_ref": "Malloc1",
        "uuid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
        "nguid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
        "eui64": 1_967_554_867_335_598_546_i64,
        "host_nsid": 1,
    }});
    Round {
        kind: Resource::new(client, "NvmeNamespace"),
        parent: &parent,
        collection: "nvmeSubsystems/namespace-test-ss/nvmeNamespaces",
        object: namespace.clone(),
        update: namespace,
    }
    .with_and_without("namespace-test")
    .await;
    controllers.deleted(&controller).await;
    subsystems.deleted(&parent).await;

    virtio_blks(client).await;
    virtio_scsi(client).await;
}

fn controller(max_nsq: i32, max_ncq: i32, sqes: i32, cqes: i32) -> Value {
    let mut object = tcp_spec(4421);
    let spec = &mut object["spec"];
    spec["max_nsq"] = max_nsq.into();
    spec["max_ncq"] = max_ncq.into();
    spec["sqes"] = sqes.into();
    spec["cqes"] = cqes.into();
    spec["nvme_controller_id"] = 1.into();
    object
}

async fn virtio_blks(client: &Client) {
    let round = Round {
        kind: Resource::new(client, "VirtioBlk"),
        parent: "",
        collection: "volumes",
        object: json!({
            "volume_name_ref": "Malloc1",
            "pcie_id": { "physical_function": 1, "virtual_function": 0, "port_id": 0 },
        }),
        update: json!({}),
    };
    for id in ["opi-virtio-blk8", ""] {
        let name = round.create(id).await;
        // The update lacks a required field and must fail; the client ignores the error.
        let update = round
            .kind
            .update(&name, round.update.clone(), Some(&["*"]))
            .await;
        assert_eq!(
            update.expect_err("the update is rejected").code(),
            tonic::Code::InvalidArgument
        );
        round.look_and_delete(&name).await;
    }
}

async fn virtio_scsi(client: &Client) {
    let object =
        json!({ "pcie_id": { "physical_function": 1, "virtual_function": 2, "port_id": 3 } });
    Round {
        kind: Resource::new(client, "VirtioScsiController"),
        parent: "",
        collection: "volumes",
        object: object.clone(),
        update: object.clone(),
    }
    .with_and_without("opi-virtio-scsi8")
    .await;

    const ID: &str = "opi-virtio-scsi8";
    let controllers = Resource::new(client, "VirtioScsiController");
    let controller = controllers.created("", ID, object).await;
    assert_eq!(name_of(&controller), format!("volumes/{ID}"));
    let luns = Resource::new(client, "VirtioScsiLun");
    let object = json!({ "target_name_ref": ID, "volume_name_ref": "Malloc1" });
    let name = name_of(&luns.created("", ID, object.clone()).await);
    assert_eq!(name, format!("volumes/{ID}"));
    luns.updated(&name, object, Some(&["*"])).await;
    client
        .ok("ListVirtioScsiLuns", json!({ "parent": name }))
        .await;
    luns.get(&name).await.expect("the LUN exists");
    luns.stats(&name).await;
    luns.deleted(&name).await;
    // The client deletes the controller by the name of the LUN, which is the same.
    controllers.deleted(&name).await;
}

async fn remote_controllers(client: &Client) {
    let round = Round {
        kind: Resource::new(client, "NvmeRemoteController"),
        parent: "",
        collection: "nvmeRemoteControllers",
        object: remote_controller(""),
        update: Value::Null,
    };
    for id in ["opi-nvme8", ""] {
        let name = round.create(id).await;
        client
            .ok("ResetNvmeRemoteController", json!({ "name": name }))
            .await;
        round.look_and_delete(&name).await;
    }
}

fn remote_controller(psk: &str) -> Value {
    json!({
        "multipath": "NVME_MULTIPATH_MULTIPATH",
        "tcp": { "hdgst": false, "ddgst": false, "psk": base64(psk) },
    })
}

async fn paths(client: &Client, port: u16, psk: &str) {
    let controllers = Resource::new(client, "NvmeRemoteController");
    let controller = name_of(
        &controllers
            .created("", "opi-nvme8", remote_controller(psk))
            .await,
    );
    let path = json!({
        "trtype": "NVME_TRANSPORT_TYPE_TCP",
        "traddr": "127.0.0.1",
        "fabrics": {
            "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
            "trsvcid": port,
            "subnqn": SUBNQN,
            "hostnqn": HOSTNQN,
        },
    });
    Round {
        kind: Resource::new(client, "NvmePath"),
        parent: &controller,
        collection: "nvmeRemoteControllers/opi-nvme8/nvmePaths",
        object: path.clone(),
        update: path,
    }
    .with_and_without("opi-nvme8-path")
    .await;
    controllers.deleted(&controller).await;
}

async fn null_volumes(client: &Client) {
    Round {
        kind: Resource::new(client, "NullVolume"),
        parent: "",
        collection: "volumes",
        object: json!({ "block_size": 512, "blocks_count": 64 }),
        update: json!({ "block_size": 512, "blocks_count": 128 }),
    }
    .with_and_without("opi-null9")
    .await;
}

async fn aio_volumes(client: &Client) {
    Round {
        kind: Resource::new(client, "AioVolume"),
        parent: "",
        collection: "volumes",
        object: json!({ "block_size": 512, "blocks_count": 12, "filename": AIO_FILE }),
        update: json!({ "filename": AIO_FILE }),
    }
    .with_and_without("opi-aio4")
    .await;
}

async fn middleend(client: &Client) {
    // 0123456789abcdef0123456789abcdee and ...ff, in base64.
    let encrypted = |key: &str| {
        json!({
            "volume_name_ref": "Malloc1",
            "key": key,
            "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
        })
    };
    Round {
        kind: Resource::new(client, "EncryptedVolume"),
        parent: "",
        collection: "volumes",
        object: encrypted("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU="),
        update: encrypted("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZmY="),
    }
    .with_and_without("opi-encrypted-volume3")
    .await;

    let limited =
        |limit: &str| json!({ "volume_name_ref": "Malloc1", "limits": { "max": { limit: 2 } } });
    Round {
        kind: Resource::new(client, "QosVolume"),
        parent: "",
        collection: "volumes",
        object: limited("rw_bandwidth_mbs"),
        update: limited("rd_bandwidth_mbs"),
    }
    .with_and_without("opi-qos-volume3")
    .await;
}
