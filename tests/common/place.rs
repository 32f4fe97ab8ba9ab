//! The environment of the generic tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::{Value, json};
use uuid::Uuid;

use super::kinds::Kind;
use super::{Client, Resource, free_port, name_of, nqn_of, tcp_spec, without};

/// The environment of one generic test: its own names, and the objects that its samples refer to.
pub struct Place {
    /// The kind under test.
    pub kind: &'static Kind,
    /// The kind's verbs.
    pub resource: Resource,
    /// The parent of the test's objects; empty for flat kinds.
    pub parent: String,
    /// Prefix of the test's IDs.
    pub tag: String,
    peer: Client,
    dir: PathBuf,
    ports: Mutex<BTreeMap<u16, u16>>,
}

/// The resources that all generic tests of a run share.
#[derive(Clone)]
pub struct Lab {
    /// gRPC address of the target under test.
    pub target: SocketAddr,
    /// gRPC address of a second target, whose subsystems the first one attaches.
    pub peer: SocketAddr,
    /// Directory for files.
    pub dir: PathBuf,
}

impl Place {
    /// Creates the environment with `tag` as the prefix of its IDs, and the parent object if the kind is
    /// nested.
    pub async fn new(lab: Lab, kind: &'static Kind, tag: &str) -> Self {
        let client = Client::connect(lab.target)
            .await
            .expect("the target accepts connections");
        let peer = Client::connect(lab.peer)
            .await
            .expect("the peer accepts connections");
        let resource = Resource::new(&client, kind.message);
        let subsystem = json!({ "spec": { "nqn": nqn_of(tag) } });
        let parent = if kind.message == "NvmePath" {
            Resource::new(&peer, "NvmeSubsystem")
                .created("", tag, subsystem)
                .await;
            let object = json!({ "multipath": "NVME_MULTIPATH_MULTIPATH" });
            name_of(
                &Resource::new(&client, "NvmeRemoteController")
                    .created("", tag, object)
                    .await,
            )
        } else if kind.message == "NvmeCredential" {
            let object = json!({ "multipath": "NVME_MULTIPATH_DISABLE" });
            name_of(
                &Resource::new(&client, "NvmeRemoteController")
                    .created("", tag, object)
                    .await,
            )
        } else if resource.nested {
            name_of(
                &Resource::new(&client, "NvmeSubsystem")
                    .created("", tag, subsystem)
                    .await,
            )
        } else {
            String::new()
        };
        Self {
            kind,
            resource,
            parent,
            tag: tag.to_owned(),
            peer,
            dir: lab.dir,
            ports: Mutex::default(),
        }
    }

    /// Returns the ID of the n-th object.
    pub fn id(&self, n: u16) -> String {
        format!("{}-{n}", self.tag)
    }

    /// Returns the resource name of the object with this ID.
    pub fn name(&self, id: &str) -> String {
        let collection = self.collection();
        match &*self.parent {
            "" if collection.ends_with("Volumes") || collection.starts_with("virtio") => {
                format!("volumes/{id}")
            }
            "" => format!("{collection}/{id}"),
            parent => format!("{parent}/{collection}/{id}"),
        }
    }

    /// Returns every form in which the API accepts the name of the object with this ID.
    pub fn forms(&self, id: &str) -> Vec<String> {
        let mut forms = vec![self.name(id)];
        if self.parent.is_empty() {
            forms.extend([id.to_owned(), format!("{}/{id}", self.collection())]);
        }
        forms
    }

    /// Returns the collection's name, such as `nullVolumes`.
    fn collection(&self) -> String {
        let mut letters = self.kind.message.chars();
        let first = letters
            .next()
            .expect("a kind has a name")
            .to_ascii_lowercase();
        format!("{first}{}s", letters.as_str())
    }

    /// Returns the n-th valid object after creating the objects that it refers to.
    pub async fn sample(&self, n: u16) -> Value {
        self.prepare(n).await;
        (self.kind.sample)(self, n)
    }

    /// Removes the input-only key from `object`: responses omit it.
    pub fn shown(&self, object: Value) -> Value {
        match self.kind.message {
            "EncryptedVolume" => without(object, "key"),
            "NvmeCredential" => without(object, "dhchap_key"),
            _ => object,
        }
    }

    /// Returns the kind's valid updates after creating the objects that they refer to.
    pub async fn changes(&self) -> Vec<(&'static str, Value)> {
        self.prepare(1000).await;
        (self.kind.changes)(self)
    }

    async fn prepare(&self, n: u16) {
        const ON_VOLUMES: [&str; 6] = [
            "DelayVolume",
            "NvmeNamespace",
            "VirtioBlk",
            "VirtioScsiLun",
            "QosVolume",
            "EncryptedVolume",
        ];
        if self.kind.message == "NvmePath" {
            let listener = Resource::new(&self.peer, "NvmeController");
            let subsystem = format!("nvmeSubsystems/{}", self.tag);
            listener
                .created(&subsystem, &self.id(n), tcp_spec(self.port(n)))
                .await;
        }
        if ON_VOLUMES.contains(&self.kind.message) {
            let object = json!({ "block_size": 512, "blocks_count": 64 });
            self.volumes().created("", &self.volume_id(n), object).await;
        }
        if self.kind.message == "VirtioScsiLun" {
            self.targets()
                .created("", &self.target_id(n), json!({}))
                .await;
        }
    }

    /// Creates the n-th object; returns its name and the response.
    pub async fn make(&self, n: u16) -> (String, Value) {
        let made = self
            .resource
            .created(&self.parent, &self.id(n), self.sample(n).await)
            .await;
        (name_of(&made), made)
    }

    fn volumes(&self) -> Resource {
        Resource::new(&self.resource.client, "NullVolume")
    }

    fn volume_id(&self, n: u16) -> String {
        format!("{}-v{n}", self.tag)
    }

    /// Returns the name of the volume of the n-th object.
    pub fn volume(&self, n: u16) -> String {
        format!("volumes/{}", self.volume_id(n))
    }

    fn targets(&self) -> Resource {
        Resource::new(&self.resource.client, "VirtioScsiTarget")
    }

    fn target_id(&self, n: u16) -> String {
        format!("{}-t{n}", self.tag)
    }

    /// Returns the name of the virtio-scsi target of the n-th object.
    pub fn target(&self, n: u16) -> String {
        format!("virtioScsiTargets/{}", self.target_id(n))
    }

    /// Creates the backing file of the n-th object; returns its path.
    pub fn file(&self, n: u16) -> String {
        let path = self.dir.join(self.id(n));
        let file = std::fs::File::create(&path).expect("the directory is writable");
        file.set_len(64 * 4096).expect("the file can be extended");
        path.display().to_string()
    }

    /// Returns the UUID of the n-th object. It is deterministic, so that a recreated object equals the
    /// first.
    pub fn uuid(&self, n: u16) -> String {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, self.id(n).as_bytes()).to_string()
    }

    /// Returns the port of the n-th object.
    pub fn port(&self, n: u16) -> u16 {
        let mut ports = self.ports.lock().expect("the lock is not poisoned");
        *ports.entry(n).or_insert_with(free_port)
    }

    /// Deletes all objects that the test created on the target under test.
    pub async fn clean(self) {
        for object in self.resource.names(&self.parent).await {
            if self.is_mine(&object) {
                self.resource.deleted(&object).await;
            }
        }
        if !self.parent.is_empty() {
            let remote = self.parent.starts_with("nvmeRemoteControllers/");
            let kind = if remote {
                "NvmeRemoteController"
            } else {
                "NvmeSubsystem"
            };
            Resource::new(&self.resource.client, kind)
                .deleted(&self.parent)
                .await;
        }
        for others in [self.volumes(), self.targets()] {
            for name in others
                .names("")
                .await
                .iter()
                .filter(|name| self.is_mine(name))
            {
                others.deleted(name).await;
            }
        }
    }

    /// Returns whether the name belongs to this test: tests run concurrently on one target.
    pub fn is_mine(&self, name: &str) -> bool {
        let parts = || name.split('/');
        parts().any(|part| part == self.tag || part.starts_with(&format!("{}-", self.tag)))
    }
}
