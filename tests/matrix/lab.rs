//! The target shared by all pairs, one after another, and the objects created on it.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::common::{Client, JsonRpc, Options, Resource, Target, devices_beside, name_of};

/// The kinds to list; nested ones are covered by their parents.
const KINDS: &[&str] = &[
    "MallocVolume",
    "AioVolume",
    "EncryptedVolume",
    "QosVolume",
    "NvmeRemoteController",
    "NvmeSubsystem",
    "VirtioBlk",
    "VirtioScsiController",
    "VirtioScsiLun",
];

/// SPDK's JSON-RPC methods that list its objects.
const LISTS: &[&str] = &[
    "bdev_get_bdevs",
    "bdev_nvme_get_controllers",
    "keyring_get_keys",
    "nvmf_get_subsystems",
];

/// The target and one pair's connection to it.
pub struct Lab {
    /// The target.
    pub target: Arc<Target>,
    /// The connection.
    pub client: Client,
}

/// Starts the target.
pub async fn start() -> Target {
    let dir = tempfile::Builder::new().prefix("opi-").tempdir();
    let dir = Arc::new(dir.expect("a temporary directory"));
    let socket = socket(dir.path()).display().to_string();
    let options = Options::hugepages().in_dir(dir);
    Target::start_with(options.args(["--spdk-rpc-socket", &socket])).await
}

fn socket(dir: &Path) -> std::path::PathBuf {
    dir.join("spdk.sock")
}

impl Lab {
    /// Opens a new connection to the target.
    pub async fn connect(target: Arc<Target>) -> Self {
        let client = target.client().await;
        Self { target, client }
    }

    /// Returns a directory for files.
    pub fn dir(&self) -> &Path {
        self.target.scratch()
    }

    /// Returns all objects, as listed by the API and by SPDK.
    pub async fn inventory(&self) -> Vec<(&'static str, Value)> {
        let mut all = Vec::new();
        for kind in KINDS {
            let names = Resource::new(&self.client, kind).names("").await;
            all.push((*kind, json!(names)));
        }
        let rpc = JsonRpc::connect(&socket(self.dir())).await;
        let mut rpc = rpc.expect("SPDK's socket accepts connections");
        for list in LISTS {
            let answer = rpc.call(list, Value::Null).await;
            all.push((list, answer.unwrap_or_else(|error| panic!("{error:#}"))));
        }
        all.push(("sockets", json!(devices_beside(&socket(self.dir())))));
        all
    }
}

/// Objects created over the API.
#[derive(Default)]
pub struct Made(Vec<(Resource, String)>);

impl Made {
    /// Creates another object; returns its name. Only nested kinds have a parent.
    pub async fn add(
        &mut self,
        client: &Client,
        kind: &'static str,
        parent: &str,
        id: &str,
        object: Value,
    ) -> String {
        let resource = Resource::new(client, kind);
        let name = name_of(&resource.created(parent, id, object).await);
        self.0.push((resource, name.clone()));
        name
    }

    /// Deletes the object created last.
    pub async fn delete_last(&mut self) {
        if let Some((resource, name)) = self.0.pop() {
            resource.deleted(&name).await;
        }
    }

    /// Deletes all objects, dependents first.
    pub async fn delete(mut self) {
        while !self.0.is_empty() {
            self.delete_last().await;
        }
    }
}
