//! NvmeCredential: keys by which paths authenticate to remote controllers, tested with real peers.

#[path = "../common/mod.rs"]
mod common;

mod exchange;
mod reasons;
mod rotation;
mod rules;

use std::time::Duration;

use common::{
    Client, HOST, Initiator, Options, Resource, Target, base64, eventually, malloc, name_of,
    namespace, nqn_of, subsystem, tcp_controller, tcp_path,
};
use serde_json::{Value, json};

/// Timeout of events that happen without a call: a path reconnects after 2 to 8 s.
pub const SOON: Duration = Duration::from_secs(30);

/// A target, and a peer whose subsystem the target attaches as a host with keys.
pub struct Lab {
    /// The target under test.
    pub target: Target,
    /// The peer.
    pub peer: Target,
    /// Client of the target under test.
    pub client: Client,
    /// NvmeHost at the peer: `nvmeSubsystems/s/nvmeHosts/h`.
    pub host: String,
    /// `nvmeRemoteControllers/remote`
    pub controller: String,
    /// Port of the peer's listener.
    pub port: u16,
}

impl Lab {
    /// Starts both, with these keys for the host at the peer and this controller at the target, without a path.
    pub async fn new(options: Options, keys: Value, controller: Value) -> Self {
        let target = Target::start_with(options).await;
        let peer = Target::start_with(Options::default().beside(&target)).await;
        let client = target.client().await;
        let at_peer = peer.client().await;
        let volume = malloc(&at_peer, "volume", 16).await;
        let subsystem = subsystem(&at_peer, "s", json!({})).await;
        namespace(&at_peer, &subsystem, &volume, json!({})).await;
        let hosts = Resource::new(&at_peer, "NvmeHost");
        let mut host = keys;
        host["hostnqn"] = HOST.into();
        let host = name_of(&hosts.created(&subsystem, "h", host).await);
        let (_, port) = tcp_controller(&at_peer, &subsystem).await;
        let remotes = Resource::new(&client, "NvmeRemoteController");
        let mut controller = controller;
        controller["multipath"] = "NVME_MULTIPATH_DISABLE".into();
        let controller = name_of(&remotes.created("", "remote", controller).await);
        Self {
            target,
            peer,
            client,
            host,
            controller,
            port,
        }
    }

    /// Returns a resource of the target.
    pub fn of(&self, message: &'static str) -> Resource {
        Resource::new(&self.client, message)
    }

    /// Creates the target's NvmeCredential with these keys; returns its name.
    pub async fn credential(&self, keys: Value) -> String {
        let credentials = self.of("NvmeCredential");
        let mut object = keys;
        object["hostnqn"] = HOST.into();
        name_of(&credentials.created(&self.controller, "keys", object).await)
    }

    /// Creates the path to the peer.
    pub async fn attach(&self) -> Result<Value, tonic::Status> {
        let path = tcp_path(self.port, &nqn_of("s"));
        let paths = self.of("NvmePath");
        paths.create(&self.controller, "path", path).await
    }

    /// Exports the remote namespace to hosts of the target.
    pub async fn export(&self) -> Initiator {
        let over = subsystem(&self.client, "over", json!({})).await;
        namespace(&self.client, &over, "remoten1", json!({})).await;
        let (_, port) = tcp_controller(&self.client, &over).await;
        Initiator::tcp(port, &nqn_of("over"))
    }

    /// Returns the IDs of the controllers through which the target is connected to the peer.
    pub async fn connected(&self) -> Vec<i64> {
        let at_peer = self.peer.client().await;
        let request = json!({ "parent": "nvmeSubsystems/s" });
        let listed = at_peer.ok("ListHosts", request).await;
        let hosts = listed["hosts"].as_array().expect("hosts").iter();
        hosts
            .map(|host| host["controller_id"].as_i64().expect("a number"))
            .collect()
    }

    /// Replaces the host's keys at the peer.
    pub async fn at_peer(&self, keys: Value) {
        let hosts = Resource::new(&self.peer.client().await, "NvmeHost");
        hosts.updated(&self.host, keys, None).await;
    }

    /// Ends the target's connections from the peer's side.
    pub async fn cut(&self) {
        let at_peer = self.peer.client().await;
        for id in self.connected().await {
            let request =
                json!({ "name": "nvmeSubsystems/s", "host_nqn": HOST, "controller_id": id });
            at_peer.ok("DisconnectHost", request).await;
        }
    }

    /// Waits until the path is reported as down for this reason.
    pub async fn is_down(&self, reason: &str) {
        let path = format!("{}/nvmePaths/path", self.controller);
        let mut said = String::new();
        let told = async || {
            let stats = self.client.call("StatsNvmePath", json!({ "name": path }));
            said = stats.await.err()?.to_string();
            said.contains(reason).then_some(())
        };
        eventually(reason, SOON, told).await;
    }

    /// Waits until the path is connected.
    pub async fn is_up(&self) {
        let path = format!("{}/nvmePaths/path", self.controller);
        eventually("the path works", SOON, async || {
            let stats = self.client.call("StatsNvmePath", json!({ "name": path }));
            stats.await.ok()
        })
        .await;
    }

    /// Stops target and peer.
    pub fn stop(self) {
        self.target.stop();
        self.peer.stop();
    }
}

/// Returns the key fields common to NvmeHost and NvmeCredential; an empty key means none.
pub fn keys(dhchap: &str, ctrlr: &str) -> Value {
    json!({ "dhchap_key": base64(dhchap), "dhchap_ctrlr_key": base64(ctrlr) })
}
