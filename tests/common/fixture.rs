//! Objects that most tests start from: unique IDs, a volume, and a subsystem that exports the volume.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use super::nvme_tcp::Identity;
use super::{Client, Initiator, Resource, Running, Target, eventually, free_port};

/// The host NQN of the tests' initiators.
pub const HOST: &str = "nqn.2022-09.io.spdk:the-host";

/// A TLS pre-shared key in interchange format.
pub const PSK: &str = "NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:";

/// Encodes bytes in base64, as protobuf's JSON mapping does.
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Returns an ID that is unique in this process.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A malloc volume exported over NVMe/TCP.
pub struct Fixture {
    /// The client that created the objects.
    pub client: Client,
    /// `nvmeSubsystems/...`
    pub subsystem: String,
    /// The subsystem's NQN.
    pub nqn: String,
    /// `volumes/...`
    pub volume: String,
    /// `nvmeSubsystems/.../nvmeNamespaces/...`
    pub namespace: String,
    /// `nvmeSubsystems/.../nvmeControllers/...`
    pub controller: String,
    /// The listener's TCP port.
    pub port: u16,
}

impl Fixture {
    /// Creates all objects on a target; the volume has `mib` MiB.
    pub async fn tcp(target: &Target, mib: u64) -> Self {
        let client = target.client().await;
        let id = unique("export");
        let volume = malloc(&client, &id, mib).await;
        let nqn = nqn_of(&id);
        let subsystem = subsystem(&client, &id, json!({})).await;
        let namespace = namespace(&client, &subsystem, &volume, json!({})).await;
        let (controller, port) = tcp_controller(&client, &subsystem).await;
        Self {
            client,
            subsystem,
            nqn,
            volume,
            namespace,
            controller,
            port,
        }
    }

    /// Returns an initiator for the subsystem.
    pub fn initiator(&self) -> Initiator {
        Initiator::tcp(self.port, &self.nqn)
    }

    /// Starts load in the background; returns once the volume's counters show I/O. The tool reports its
    /// start before its queues are connected, and gives up if connecting takes more than 10 s.
    pub async fn load(&self, seconds: u32) -> Running {
        let volumes = self.resource("MallocVolume");
        let ops = async || {
            let stats = volumes.stats(&self.volume).await;
            let count = |field: &str| stats[field].as_i64().unwrap_or(0);
            count("read_ops_count") + count("write_ops_count")
        };
        let before = ops().await;
        let load = self.initiator().load(seconds).await;
        eventually(
            "the load's I/O is counted",
            Duration::from_secs(15),
            async || (ops().await > before).then_some(()),
        )
        .await;
        load
    }

    /// Returns one kind through this fixture's client.
    pub fn resource(&self, message: &'static str) -> Resource {
        Resource::new(&self.client, message)
    }

    /// Deletes all objects, dependents first.
    pub async fn remove(self) {
        self.resource("NvmeController")
            .deleted(&self.controller)
            .await;
        self.resource("NvmeNamespace")
            .deleted(&self.namespace)
            .await;
        self.resource("NvmeSubsystem")
            .deleted(&self.subsystem)
            .await;
        self.resource("MallocVolume").deleted(&self.volume).await;
    }
}

/// Returns the NQN of the subsystem with this ID.
pub fn nqn_of(id: &str) -> String {
    format!("nqn.2022-09.io.spdk:{id}")
}

/// Creates a malloc volume; returns its name.
pub async fn malloc(client: &Client, id: &str, mib: u64) -> String {
    let object = json!({ "block_size": 512, "blocks_count": mib * 2048 });
    name(
        Resource::new(client, "MallocVolume")
            .created("", id, object)
            .await,
    )
}

/// Creates a subsystem with the fields of `spec`; returns its name.
pub async fn subsystem(client: &Client, id: &str, mut spec: Value) -> String {
    spec["nqn"] = nqn_of(id).into();
    name(
        Resource::new(client, "NvmeSubsystem")
            .created("", id, json!({ "spec": spec }))
            .await,
    )
}

/// Creates a namespace for a volume; returns its name.
pub async fn namespace(client: &Client, subsystem: &str, volume: &str, mut spec: Value) -> String {
    spec["volume_name_ref"] = volume.into();
    let object = json!({ "spec": spec });
    name(
        Resource::new(client, "NvmeNamespace")
            .created(subsystem, "", object)
            .await,
    )
}

/// Creates a TCP controller (listener) on a free port; returns its name and the port.
pub async fn tcp_controller(client: &Client, subsystem: &str) -> (String, u16) {
    let port = free_port();
    let object = tcp_spec(port);
    let made = Resource::new(client, "NvmeController")
        .created(subsystem, "", object)
        .await;
    (name(made), port)
}

/// Exports these volumes over TCP in a subsystem of their own; returns the identity of a host of theirs.
pub async fn tcp_export(client: &Client, volumes: &[String]) -> Identity {
    let id = unique("export");
    let over = subsystem(client, &id, json!({})).await;
    for volume in volumes {
        namespace(client, &over, volume, json!({})).await;
    }
    let (_, port) = tcp_controller(client, &over).await;
    Identity::new(port, &nqn_of(&id))
}

/// A TCP controller on a loopback port.
pub fn tcp_spec(port: u16) -> Value {
    json!({ "spec": {
        "trtype": "NVME_TRANSPORT_TYPE_TCP",
        "fabrics_id": {
            "traddr": "127.0.0.1",
            "trsvcid": port.to_string(),
            "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
        },
    }})
}

/// A PCIE controller with this physical function.
pub fn pcie_spec(function: i32) -> Value {
    json!({ "spec": {
        "trtype": "NVME_TRANSPORT_TYPE_PCIE",
        "pcie_id": { "port_id": 0, "physical_function": function, "virtual_function": 0 },
    }})
}

/// Creates a malloc volume and a subsystem that exports it over vfio-user; returns the controller's socket.
pub async fn pcie_export(
    target: &Target,
    client: &Client,
    id: &str,
    mib: u64,
    function: i32,
) -> PathBuf {
    let volume = malloc(client, &format!("{id}-volume"), mib).await;
    let exported = subsystem(client, id, json!({})).await;
    namespace(client, &exported, &volume, json!({})).await;
    Resource::new(client, "NvmeController")
        .created(&exported, "", pcie_spec(function))
        .await;
    target.ctrlr_dir().join(id).join("cntrl")
}

/// A path to a subsystem that another target exports on a loopback port.
pub fn tcp_path(port: u16, nqn: &str) -> Value {
    json!({
        "trtype": "NVME_TRANSPORT_TYPE_TCP",
        "traddr": "127.0.0.1",
        "fabrics": {
            "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
            "trsvcid": port,
            "subnqn": nqn,
            "hostnqn": HOST,
        },
    })
}

/// Creates a remote controller with this multipath mode (`MULTIPATH`...); returns its name.
pub async fn remote_controller(client: &Client, id: &str, multipath: &str) -> String {
    let object = json!({ "multipath": format!("NVME_MULTIPATH_{multipath}") });
    let controllers = Resource::new(client, "NvmeRemoteController");
    name(controllers.created("", id, object).await)
}

/// A virtio-blk device backed by this volume.
pub fn blk_spec(volume: &str) -> Value {
    json!({
        "pcie_id": { "port_id": 0, "physical_function": 1, "virtual_function": 0 },
        "volume_name_ref": volume,
    })
}

/// A virtio-scsi controller.
pub fn scsi_spec() -> Value {
    json!({ "pcie_id": { "port_id": 3, "physical_function": 1, "virtual_function": 2 } })
}

/// A LUN of a virtio-scsi target, backed by this volume.
pub fn lun_spec(target: &str, volume: &str) -> Value {
    json!({ "target_name_ref": target, "volume_name_ref": volume })
}

/// An encrypted volume over `volume`; the cipher is `AES_XTS_128` or `AES_XTS_256`.
pub fn encrypted_spec(volume: &str, cipher: &str, key: &str) -> Value {
    json!({ "volume_name_ref": volume, "cipher": format!("ENCRYPTION_TYPE_{cipher}"), "key": key })
}

/// Returns `kib` KiB in which every aligned group of eight bytes is unique.
pub fn pattern(kib: u32) -> Vec<u8> {
    let words = (0..kib * 128).map(|n| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

fn name(object: Value) -> String {
    super::resource::name_of(&object)
}
