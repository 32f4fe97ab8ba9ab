//! The kinds that the tests of every kind run over, each with what a valid object of it looks like. A kind
//! that is implemented moves from [`UNIMPLEMENTED`] to [`IMPLEMENTED`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Client, Resource, free_port, name_of, nqn_of, tcp_spec, without};

/// What the suite has to know of a kind.
pub struct Kind {
    /// The name of its message.
    pub message: &'static str,
    /// The n-th of many valid objects that differ from each other.
    pub sample: fn(&Place, u16) -> Value,
    /// Changes of an object that nobody uses, each a path and its new value.
    pub changes: fn(&Place) -> Vec<(&'static str, Value)>,
    /// Changes that are refused with INVALID_ARGUMENT, whoever uses the object.
    pub fixed: fn(&Place) -> Vec<(&'static str, Value)>,
}

/// Answer all six verbs.
pub const IMPLEMENTED: &[Kind] = &[
    Kind {
        message: "NullVolume",
        sample: |place, n| json!({ "block_size": 512, "blocks_count": 64 + i64::from(n), "uuid": place.uuid(n) }),
        changes: |_| vec![("blocks_count", json!(128)), ("block_size", json!(4096))],
        fixed: |_| vec![],
    },
    Kind {
        message: "MallocVolume",
        sample: |place, n| json!({ "block_size": 512, "blocks_count": 64 + i64::from(n), "uuid": place.uuid(n) }),
        changes: |_| vec![("blocks_count", json!(128)), ("block_size", json!(4096))],
        fixed: |_| vec![],
    },
    Kind {
        message: "AioVolume",
        sample: |place, n| json!({ "block_size": 512, "filename": place.file(n), "uuid": place.uuid(n) }),
        changes: |place| {
            vec![
                ("filename", json!(place.file(1000))),
                ("block_size", json!(4096)),
            ]
        },
        fixed: |_| vec![],
    },
    Kind {
        message: "NvmeSubsystem",
        sample: |place, n| {
            json!({ "spec": {
                "nqn": nqn_of(&place.id(n)),
                "serial_number": format!("serial{n}"),
                "model_number": "a model",
                "max_namespaces": 11,
            }})
        },
        changes: |_| {
            vec![
                ("spec.hostnqn", json!("nqn.2022-09.io.spdk:the-host")),
                ("spec.serial_number", json!("another")),
                ("spec.model_number", json!("another model")),
            ]
        },
        fixed: |place| vec![("spec.nqn", json!(nqn_of(&place.id(1000))))],
    },
    Kind {
        message: "NvmeNamespace",
        sample: |place, n| {
            json!({ "spec": {
                "volume_name_ref": place.volume(n),
                "host_nsid": n + 1,
                "uuid": place.uuid(n),
                "nguid": format!("1b4e28ba2fa111d2883f0016d3cd{n:04x}"),
                "eui64": 1_967_554_867_335_598_546_i64 + i64::from(n),
            }})
        },
        changes: |place| vec![("spec.volume_name_ref", json!(place.volume(1000)))],
        fixed: |_| vec![],
    },
    Kind {
        message: "NvmeController",
        sample: |place, n| tcp_spec(place.port(n)),
        changes: |place| {
            vec![(
                "spec.fabrics_id.trsvcid",
                json!(place.port(1000).to_string()),
            )]
        },
        fixed: |_| vec![("spec.nvme_controller_id", json!(77))],
    },
    Kind {
        message: "NvmeHost",
        sample: |_, n| json!({ "hostnqn": nqn_of(&format!("host-{n}")) }),
        changes: |_| vec![("hostnqn", json!(nqn_of("another-host")))],
        fixed: |_| vec![("hostnqn", json!("nqn.2022-09.io.spdk"))],
    },
    Kind {
        message: "VirtioBlk",
        sample: |place, n| {
            json!({
                "pcie_id": { "port_id": 0, "physical_function": n, "virtual_function": 0 },
                "volume_name_ref": place.volume(n),
                "max_io_qps": 4,
                "max_limit": { "rw_iops_kiops": n + 1 },
            })
        },
        changes: |place| {
            vec![
                ("pcie_id.physical_function", json!(31)),
                ("volume_name_ref", json!(place.volume(1000))),
                ("max_io_qps", json!(8)),
                ("max_limit.rw_bandwidth_mbs", json!(64)),
            ]
        },
        fixed: |_| {
            vec![
                ("pcie_id.port_id", json!(1)),
                ("max_limit.rd_iops_kiops", json!(5)),
            ]
        },
    },
    Kind {
        message: "VirtioScsiTarget",
        sample: |_, n| json!({ "max_luns": n % 8 + 1 }),
        changes: |_| vec![("max_luns", json!(8))],
        fixed: |_| vec![("max_luns", json!(9))],
    },
    Kind {
        message: "VirtioScsiController",
        sample: |_, n| json!({ "pcie_id": { "port_id": 3, "physical_function": n, "virtual_function": 2 } }),
        changes: |_| vec![("pcie_id.virtual_function", json!(5))],
        fixed: |_| {
            vec![
                ("max_limit.rw_iops_kiops", json!(5)),
                ("min_limit.rd_bandwidth_mbs", json!(5)),
            ]
        },
    },
    Kind {
        message: "VirtioScsiLun",
        sample: |place, n| json!({ "target_name_ref": place.target(n), "volume_name_ref": place.volume(n) }),
        changes: |place| {
            vec![
                ("target_name_ref", json!(place.target(1000))),
                ("volume_name_ref", json!(place.volume(1000))),
            ]
        },
        fixed: |_| vec![("target_name_ref", json!("virtioBlks/a"))],
    },
    Kind {
        message: "NvmeRemoteController",
        sample: |_, n| {
            json!({
                "multipath": "NVME_MULTIPATH_MULTIPATH",
                "io_queues_count": n + 1,
                "queue_size": 128,
                "tcp": { "hdgst": true, "ddgst": false },
            })
        },
        changes: |_| {
            vec![
                ("multipath", json!("NVME_MULTIPATH_FAILOVER")),
                ("queue_size", json!(64)),
                ("tcp.ddgst", json!(true)),
            ]
        },
        fixed: |_| vec![("io_queues_count", json!(-1)), ("queue_size", json!(1))],
    },
    Kind {
        message: "NvmePath",
        sample: |place, n| {
            json!({
                "trtype": "NVME_TRANSPORT_TYPE_TCP",
                "traddr": "127.0.0.1",
                "fabrics": {
                    "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
                    "trsvcid": place.port(n),
                    "subnqn": nqn_of(&place.tag),
                    "hostnqn": "nqn.2022-09.io.spdk:the-host",
                },
            })
        },
        changes: |place| vec![("fabrics.trsvcid", json!(place.port(1000)))],
        fixed: |_| {
            vec![
                ("traddr", json!("a.host")),
                ("fabrics.adrfam", json!("NVME_ADDRESS_FAMILY_IPV6")),
            ]
        },
    },
    Kind {
        message: "QosVolume",
        sample: |place, n| {
            json!({
                "volume_name_ref": place.volume(n),
                "limits": { "max": { "rw_bandwidth_mbs": n + 2 } },
            })
        },
        changes: |place| {
            vec![
                ("limits.max.rd_bandwidth_mbs", json!(1)),
                ("limits.max.rw_iops_kiops", json!(3)),
                ("volume_name_ref", json!(place.volume(1000))),
            ]
        },
        fixed: |_| {
            vec![
                ("limits.max.wr_iops_kiops", json!(5)),
                ("limits.min.rw_iops_kiops", json!(5)),
            ]
        },
    },
    Kind {
        message: "DelayVolume",
        sample: |place, n| {
            json!({
                "volume_name_ref": place.volume(n),
                "avg_read_latency_us": n + 1,
                "p99_write_latency_us": 1000,
            })
        },
        changes: |place| {
            vec![
                ("avg_read_latency_us", json!(50)),
                ("p99_read_latency_us", json!(500)),
                ("avg_write_latency_us", json!(50)),
                ("p99_write_latency_us", json!(10)),
                ("volume_name_ref", json!(place.volume(1000))),
            ]
        },
        fixed: |_| {
            vec![
                ("avg_read_latency_us", json!(60_000_001)),
                ("p99_write_latency_us", json!(-1)),
            ]
        },
    },
    Kind {
        message: "EncryptedVolume",
        sample: |place, n| {
            json!({
                "volume_name_ref": place.volume(n),
                "key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=",
                "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
            })
        },
        changes: |place| vec![("volume_name_ref", json!(place.volume(1000)))],
        fixed: |_| vec![("cipher", json!("ENCRYPTION_TYPE_AES_CBC_128"))],
    },
];

/// Are found by the peer of a remote controller, and only read.
pub const OBSERVED: &[&str] = &["NvmeRemoteNamespace"];

/// Answer UNIMPLEMENTED to everything.
pub const UNIMPLEMENTED: &[&str] = &[];

/// Where one test of the contract works: names of its own, and what its objects refer to.
pub struct Place {
    /// The kind under test.
    pub kind: &'static Kind,
    /// Its verbs.
    pub resource: Resource,
    /// What its objects are a part of; empty for flat kinds.
    pub parent: String,
    tag: String,
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
        if self.kind.message == "EncryptedVolume" {
            without(object, "key")
        } else {
            object
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

    fn volume(&self, n: u16) -> String {
        format!("volumes/{}", self.volume_id(n))
    }

    fn targets(&self) -> Resource {
        Resource::new(&self.resource.client, "VirtioScsiTarget")
    }

    fn target_id(&self, n: u16) -> String {
        format!("{}-t{n}", self.tag)
    }

    fn target(&self, n: u16) -> String {
        format!("virtioScsiTargets/{}", self.target_id(n))
    }

    fn file(&self, n: u16) -> String {
        let path = self.dir.join(self.id(n));
        let file = std::fs::File::create(&path).expect("the directory is writable");
        file.set_len(64 * 4096).expect("there is room");
        path.display().to_string()
    }

    /// Of no other object, and the same each time: given, so that a rebuilt object equals the first.
    fn uuid(&self, n: u16) -> String {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, self.id(n).as_bytes()).to_string()
    }

    fn port(&self, n: u16) -> u16 {
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
