//! What most tests begin with: names of their own, a volume, a subsystem that exports it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use super::{Client, Initiator, Resource, Running, Target, eventually, free_port};

/// Who a host says that it is.
pub const HOST: &str = "nqn.2022-09.io.spdk:the-host";

/// A key for TLS in its interchange form.
pub const PSK: &str = "NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:";

/// Bytes as JSON has them.
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// An ID that no other test of this process has.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A malloc volume behind a subsystem that TCP hosts can reach.
pub struct Fixture {
    /// The connection that made it.
    pub client: Client,
    /// `nvmeSubsystems/...`
    pub subsystem: String,
    /// Its NQN.
    pub nqn: String,
    /// `volumes/...`
    pub volume: String,
    /// `nvmeSubsystems/.../nvmeNamespaces/...`
    pub namespace: String,
    /// `nvmeSubsystems/.../nvmeControllers/...`
    pub controller: String,
    /// Where it listens.
    pub port: u16,
}

impl Fixture {
    /// Makes all of it on a target; the volume has `mib`.
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

    /// How a host reaches it.
    pub fn initiator(&self) -> Initiator {
        Initiator::tcp(self.port, &self.nqn)
    }

    /// Load on it in the background, once I/O of it is counted: the tool connects its queues for a while
    /// after it has said that it begins, and waits 10 s for them in vain.
    pub async fn load(&self, seconds: u32) -> Running {
        let volumes = self.resource("MallocVolume");
        let ops = async || {
            let stats = volumes.stats(&self.volume).await;
            let count = |field: &str| stats[field].as_i64().unwrap_or(0);
            count("read_ops_count") + count("write_ops_count")
        };
        let before = ops().await;
        let load = self.initiator().load(seconds).await;
        eventually("there is I/O", Duration::from_secs(15), async || {
            (ops().await > before).then_some(())
        })
        .await;
        load
    }

    /// One of the kinds, through the connection of this fixture.
    pub fn resource(&self, message: &'static str) -> Resource {
        Resource::new(&self.client, message)
    }

    /// Takes it down again, users first.
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

/// The NQN of the subsystem with this ID.
pub fn nqn_of(id: &str) -> String {
    format!("nqn.2022-09.io.spdk:{id}")
}

/// Makes a malloc volume; its name.
pub async fn malloc(client: &Client, id: &str, mib: u64) -> String {
    let object = json!({ "block_size": 512, "blocks_count": mib * 2048 });
    name(
        Resource::new(client, "MallocVolume")
            .created("", id, object)
            .await,
    )
}

/// Makes a subsystem that also has what is in `spec`; its name.
pub async fn subsystem(client: &Client, id: &str, mut spec: Value) -> String {
    spec["nqn"] = nqn_of(id).into();
    name(
        Resource::new(client, "NvmeSubsystem")
            .created("", id, json!({ "spec": spec }))
            .await,
    )
}

/// Shows a volume in a subsystem; its name.
pub async fn namespace(client: &Client, subsystem: &str, volume: &str, mut spec: Value) -> String {
    spec["volume_name_ref"] = volume.into();
    let object = json!({ "spec": spec });
    name(
        Resource::new(client, "NvmeNamespace")
            .created(subsystem, "", object)
            .await,
    )
}

/// Makes a subsystem listen on a free port; its name, and the port.
pub async fn tcp_controller(client: &Client, subsystem: &str) -> (String, u16) {
    let port = free_port();
    let object = tcp_spec(port);
    let made = Resource::new(client, "NvmeController")
        .created(subsystem, "", object)
        .await;
    (name(made), port)
}

/// A TCP controller on a port of loopback.
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

/// A path to a subsystem that another target shows on a port of loopback.
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

/// Makes a remote controller whose paths join as this mode (`MULTIPATH`...) says; its name.
pub async fn remote_controller(client: &Client, id: &str, multipath: &str) -> String {
    let object = json!({ "multipath": format!("NVME_MULTIPATH_{multipath}") });
    let controllers = Resource::new(client, "NvmeRemoteController");
    name(controllers.created("", id, object).await)
}

/// A virtio-blk device that has this volume.
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

/// A LUN of a virtio-scsi target.
pub fn lun_spec(target: &str, volume: &str) -> Value {
    json!({ "target_name_ref": target, "volume_name_ref": volume })
}

/// A volume's ciphertext; the cipher is `AES_XTS_128` or `AES_XTS_256`.
pub fn encrypted_spec(volume: &str, cipher: &str, key: &str) -> Value {
    json!({ "volume_name_ref": volume, "cipher": format!("ENCRYPTION_TYPE_{cipher}"), "key": key })
}

/// `kib` of bytes: no eight of them are at another place, too.
pub fn pattern(kib: u32) -> Vec<u8> {
    let words = (0..kib * 128).map(|n| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

fn name(object: Value) -> String {
    super::resource::name_of(&object)
}
