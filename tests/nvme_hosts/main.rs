//! NvmeHost: admission of hosts to a subsystem, tested with SPDK's own initiator.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod dhchap;
mod exchange;
mod first;
mod hello;
mod lost_namespace;
mod made;
mod masks;
mod old_keys;
mod refusals;
mod rotation;
mod rules;
mod tls;
mod turns;
mod unproved;
mod views;
mod weakest;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use common::nvme_tcp::Identity;
use common::{
    Client, Initiator, Resource, Target, base64, eventually, malloc, name_of, namespace, nqn_of,
    subsystem, tcp_controller,
};
use serde_json::{Value, json};

/// NQN of a host.
pub const ALICE: &str = "nqn.2022-09.io.spdk:alice";
/// NQN of another host.
pub const BOB: &str = "nqn.2022-09.io.spdk:bob";

/// Timeout of events that happen without a call.
pub const SOON: Duration = Duration::from_secs(20);

/// Seconds of I/O of a host unless it is stopped: longer than any test needs.
pub const STAY: u32 = 120;

/// A subsystem with one namespace and a listener, which admits the configured hosts.
pub struct Export {
    /// Client of the target.
    pub client: Client,
    /// The subsystem's name.
    pub subsystem: String,
    /// Its NQN.
    pub nqn: String,
    /// Port of its listener.
    pub port: u16,
}

impl Export {
    /// Creates a subsystem that admits these hosts, given by ID.
    pub async fn new(target: &Target, id: &str, hosts: &[(&str, Value)]) -> Self {
        let client = target.client().await;
        let volume = malloc(&client, &format!("{id}-volume"), 16).await;
        let subsystem = subsystem(&client, id, json!({})).await;
        namespace(&client, &subsystem, &volume, json!({})).await;
        for (id, host) in hosts {
            hosts_of(&client)
                .created(&subsystem, id, host.clone())
                .await;
        }
        let (_, port) = tcp_controller(&client, &subsystem).await;
        Self {
            client,
            subsystem,
            nqn: nqn_of(id),
            port,
        }
    }

    /// Returns a host with this NQN.
    pub fn host(&self, hostnqn: &str) -> Initiator {
        Initiator::tcp(self.port, &self.nqn).with_host(hostnqn)
    }

    /// Returns a host of the test's own with this NQN.
    pub fn raw_host(&self, hostnqn: &str) -> Identity {
        Identity {
            hostnqn: hostnqn.to_owned(),
            ..Identity::new(self.port, &self.nqn)
        }
    }

    /// Admits one more host; returns its name.
    pub async fn admit(&self, id: &str, host: Value) -> String {
        let hosts = hosts_of(&self.client);
        name_of(&hosts.created(&self.subsystem, id, host).await)
    }

    /// Returns the controller IDs of a connected host.
    pub async fn connected(&self, hostnqn: &str) -> Vec<i64> {
        let request = json!({ "parent": self.subsystem });
        let listed = self.client.ok("ListHosts", request).await;
        let hosts = listed["hosts"].as_array().expect("hosts").iter();
        let of = hosts.filter(|host| host["host_nqn"] == hostnqn);
        of.map(|host| host["controller_id"].as_i64().expect("a number"))
            .collect()
    }

    /// Waits until a host is connected and, once its queues have authenticated, has written; returns its controller ID.
    pub async fn comes(&self, hostnqn: &str) -> i64 {
        let subsystems = Resource::new(&self.client, "NvmeSubsystem");
        eventually("the host is connected and writes", SOON, async || {
            let stats = subsystems.stats(&self.subsystem).await;
            let writes = stats["write_ops_count"].as_i64().unwrap_or(0) > 0;
            let controller = self.connected(hostnqn).await.first().copied();
            controller.filter(|_| writes)
        })
        .await
    }
}

/// Returns the resource of NvmeHosts.
pub fn hosts_of(client: &Client) -> Resource {
    Resource::new(client, "NvmeHost")
}

/// Returns an NvmeHost as the API takes it; an empty key means none.
pub fn host(hostnqn: &str, psk: &str, dhchap: &str, ctrlr: &str) -> Value {
    json!({
        "hostnqn": hostnqn,
        "psk": base64(psk),
        "dhchap_key": base64(dhchap),
        "dhchap_ctrlr_key": base64(ctrlr),
    })
}

/// Writes a key file in the form that SPDK's keyring accepts.
pub fn key_file(target: &Target, name: &str, key: &str) -> PathBuf {
    let path = target.scratch().join(name);
    std::fs::write(&path, key).expect("there is room");
    let owner = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, owner).expect("it is ours");
    path
}

/// Creates a scratch directory for a tool.
pub fn place(target: &Target, name: &str) -> PathBuf {
    let dir = target.scratch().join(name);
    std::fs::create_dir_all(&dir).expect("the directory is writable");
    dir
}

/// Checks that a host can connect and read.
pub async fn reads(target: &Target, host: &Initiator) -> Result<String, String> {
    let dir = place(target, "read");
    host.copy_out(&dir, 1, 64, &dir.join("copy")).await
}
