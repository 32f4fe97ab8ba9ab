//! The fixture: a target with a bystander, and controllers and exports of a peer.

use std::time::{Duration, Instant};

use serde_json::json;
use tonic::Status;

use crate::common::nvme_tcp::{Bystander, Digests, Host, Identity};
use crate::common::nvme_tcp_peer::{NQN, Peer};
use crate::common::{
    Client, Options, Resource, Target, name_of, namespace, nqn_of, remote_controller, subsystem,
    tcp_controller, tcp_path, unique,
};

/// Promised deadline of ending anything whose peer is silent.
pub const END: Duration = Duration::from_secs(5);

/// A target, and a host of it (the bystander) that has nothing to do with any peer.
pub struct Session {
    pub target: Target,
    pub client: Client,
    pub bystander: Bystander,
}

impl Session {
    /// Starts the target with these flags.
    pub async fn with(args: &[&str]) -> Self {
        Self::of_target(Options::default().args(args.iter().copied())).await
    }

    /// Starts a target with these options.
    pub async fn of_target(options: Options) -> Self {
        let target = Target::start_with(options).await;
        let client = target.client().await;
        let bystander = Bystander::new(&target).await;
        Self {
            target,
            client,
            bystander,
        }
    }

    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a target that has the machine for itself, for what is measured.
    pub async fn alone() -> Self {
        Self::of_target(Options::default().alone()).await
    }

    pub fn of(&self, message: &'static str) -> Resource {
        Resource::new(&self.client, message)
    }

    /// Creates a controller with a path to the peer.
    pub async fn attach(&self, peer: &Peer) -> Result<Attached, Status> {
        let id = unique("peer");
        let controller = remote_controller(&self.client, &id, "DISABLE").await;
        let path = tcp_path(peer.port, NQN);
        match self.of("NvmePath").create(&controller, "path", path).await {
            Ok(path) => Ok(Attached {
                id,
                controller,
                path: name_of(&path),
            }),
            Err(status) => {
                self.of("NvmeRemoteController").deleted(&controller).await;
                Err(status)
            }
        }
    }

    /// Attaches the peer and exports its namespace 1 to a host.
    pub async fn attach_and_export(&self, peer: &Peer) -> (Attached, Export) {
        let attached = self.attach(peer).await.expect("the peer does right");
        let export = self.export(&attached).await;
        (attached, export)
    }

    /// Exports namespace 1 to a host.
    pub async fn export(&self, attached: &Attached) -> Export {
        self.export_volume(&format!("{}n1", attached.id)).await
    }

    /// Exports a volume to a host.
    pub async fn export_volume(&self, volume: &str) -> Export {
        let id = unique("over-peer");
        let over = subsystem(&self.client, &id, json!({})).await;
        let shown = namespace(&self.client, &over, volume, json!({})).await;
        let (listens, port) = tcp_controller(&self.client, &over).await;
        let identity = Identity::new(port, &nqn_of(&id));
        let admin = identity.admin(Digests::OFF);
        let io = identity.io(&admin, 1);
        Export {
            subsystem: over,
            namespace: shown,
            controller: listens,
            _admin: admin,
            io,
        }
    }

    /// Deletes an export, each object before its deadline.
    pub async fn withdraw(&self, export: Export) {
        let Export {
            subsystem,
            namespace,
            controller,
            _admin,
            io,
        } = export;
        self.ends("NvmeNamespace", &namespace).await;
        drop((io, _admin));
        self.ends("NvmeController", &controller).await;
        self.ends("NvmeSubsystem", &subsystem).await;
    }

    /// Deletes a controller, its path first, each before its deadline.
    pub async fn detach(&self, attached: Attached) {
        self.ends("NvmePath", &attached.path).await;
        self.ends("NvmeRemoteController", &attached.controller)
            .await;
    }

    /// Deletes an object before the promised deadline.
    pub async fn ends(&self, message: &'static str, name: &str) {
        let begin = Instant::now();
        let deleted = self.of(message).delete(name).await;
        let took = begin.elapsed();
        assert!(
            deleted.is_ok(),
            "{name}: {deleted:?}\n{}",
            self.target.log()
        );
        assert!(took < END, "{name} took {took:?}\n{}", self.target.log());
    }

    /// Checks all invariants after an attack, when everything of the peer is gone.
    pub async fn unharmed(&mut self, what: &str) {
        self.bystander.unharmed(&mut self.target, what).await;
    }

    /// Waits until a controller has this many namespaces.
    pub async fn namespaces(&self, attached: &Attached, count: usize) {
        namespaces_of(&self.client, attached, count).await;
    }
}

/// Waits until a controller of this client's target has this many namespaces.
pub async fn namespaces_of(client: &Client, attached: &Attached, count: usize) {
    let request = json!({ "parent": attached.controller });
    let mut found = 0;
    let there = tokio::time::timeout(END, async {
        while found != count {
            let answer = client.ok("ListNvmeRemoteNamespaces", request.clone()).await;
            let list = &answer["nvme_remote_namespaces"];
            found = list.as_array().map_or(0, Vec::len);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(
        there.is_ok(),
        "{}: {found} namespaces, not {count}",
        attached.controller
    );
}

/// A controller with a path to a peer.
pub struct Attached {
    pub id: String,
    pub controller: String,
    pub path: String,
}

/// An export of the controller's first namespace to a host.
pub struct Export {
    pub subsystem: String,
    pub namespace: String,
    pub controller: String,
    _admin: Host,
    pub io: Host,
}

/// Reads as a patient host: SPDK may reconnect the peer meanwhile.
pub fn read(export: &mut Export, lba: u64, blocks: u16) -> std::io::Result<Vec<u8>> {
    export.io.read(1, lba, blocks)
}
