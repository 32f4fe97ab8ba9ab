//! Where the tests of every kind work.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::{Value, json};
use uuid::Uuid;

use super::kinds::Kind;
use super::{Client, Resource, free_port, name_of, nqn_of, tcp_spec, without};

/// Where one test of the contract works: names of its own, and what its objects refer to.
pub struct Place {
    /// The kind under test.
    pub kind: &'static Kind,
    /// Its verbs.
    pub resource: Resource,
    /// What its objects are a part of; empty for flat kinds.
    pub parent: String,
    /// What its names begin with.
    pub tag: String,
    peer: Client,
    dir: PathBuf,
    ports: Mutex<BTreeMap<u16, u16>>,
}

/// What one run of the suite works with.
#[derive(Clone)]
pub struct Lab {
    /// Where the target under test serves.
    pub target: SocketAddr,
    /// Where a second target serves, whose exports the first one attaches.
    pub peer: SocketAddr,
    /// Where files go.
    pub dir: PathBuf,
}

impl Place {
    /// A place with the name `tag`.
    pub async fn new(lab: Lab, kind: &'static Kind, tag: &str) -> Self {
        let client = Client::connect(lab.target)
            .await
            .expect("the target takes connections");
        let peer = Client::connect(lab.peer)
            .await
            .expect("the peer takes connections");
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

    /// The ID of the n-th object.
    pub fn id(&self, n: u16) -> String {
        format!("{}-{n}", self.tag)
    }

    /// The name that the object with this ID is answered with.
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

    /// All forms in which the object with this ID may be named.
    pub fn forms(&self, id: &str) -> Vec<String> {
        let mut forms = vec![self.name(id)];
        if self.parent.is_empty() {
            forms.extend([id.to_owned(), format!("{}/{id}", self.collection())]);
        }
        forms
    }

    /// `nullVolumes`
    fn collection(&self) -> String {
        let mut letters = self.kind.message.chars();
        let first = letters
            .next()
            .expect("a kind has a name")
            .to_ascii_lowercase();
        format!("{first}{}s", letters.as_str())
    }

    /// The n-th valid object, with all that it refers to in place.
    pub async fn sample(&self, n: u16) -> Value {
        self.prepare(n).await;
        (self.kind.sample)(self, n)
    }

    /// What of an object is answered: all but its key.
    pub fn shown(&self, object: Value) -> Value {
        match self.kind.message {
            "EncryptedVolume" => without(object, "key"),
            "NvmeCredential" => without(object, "dhchap_key"),
            _ => object,
        }
    }

    /// The changes that the kind takes, with all that they refer to in place.
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

    /// Makes the n-th object; its name, and what the answer was.
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

    /// Of the n-th object.
    pub fn volume(&self, n: u16) -> String {
        format!("volumes/{}", self.volume_id(n))
    }

    fn targets(&self) -> Resource {
        Resource::new(&self.resource.client, "VirtioScsiTarget")
    }

    fn target_id(&self, n: u16) -> String {
        format!("{}-t{n}", self.tag)
    }

    /// Of the n-th object.
    pub fn target(&self, n: u16) -> String {
        format!("virtioScsiTargets/{}", self.target_id(n))
    }

    /// Of the n-th object.
    pub fn file(&self, n: u16) -> String {
        let path = self.dir.join(self.id(n));
        let file = std::fs::File::create(&path).expect("the directory is writable");
        file.set_len(64 * 4096).expect("there is room");
        path.display().to_string()
    }

    /// Of no other object, and the same each time: given, so that a rebuilt object equals the first.
    pub fn uuid(&self, n: u16) -> String {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, self.id(n).as_bytes()).to_string()
    }

    /// Of the n-th object.
    pub fn port(&self, n: u16) -> u16 {
        let mut ports = self.ports.lock().expect("no test panics here");
        *ports.entry(n).or_insert_with(free_port)
    }

    /// Takes away all that the test made.
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

    /// Whether the name is of this test; tests run side by side on one target.
    pub fn is_mine(&self, name: &str) -> bool {
        let parts = || name.split('/');
        parts().any(|part| part == self.tag || part.starts_with(&format!("{}-", self.tag)))
    }
}
