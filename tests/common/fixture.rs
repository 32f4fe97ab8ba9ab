//! What most tests begin with: names of their own, a volume, a subsystem that exports it.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::{Client, Initiator, Resource, Target, free_port};

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

fn name(object: Value) -> String {
    super::resource::name_of(&object)
}
