//! A snapshot of a target's objects in a form that can be compared: from SPDK's own JSON-RPC, and from
//! the API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use crate::common::{Client, JsonRpc, Resource, at, devices_beside, name_of};

/// The objects of a target. A difference between SPDK and the API is a leak.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Names of the bdevs.
    bdevs: BTreeSet<String>,
    /// Aliases of bdevs other than their UUIDs.
    aliases: BTreeSet<String>,
    /// Names of bdevs with rate limits.
    limited: BTreeSet<String>,
    /// Subsystems by NQN.
    subsystems: BTreeMap<String, Subsystem>,
    /// Names of vhost-user devices.
    devices: BTreeSet<String>,
    /// Number of paths by remote controller, if there are any.
    paths: BTreeMap<String, usize>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Subsystem {
    hosts: BTreeSet<String>,
    /// `TCP 127.0.0.1:4420` or `VFIOUSER`
    listeners: BTreeSet<String>,
    /// The bdev of each namespace by NSID.
    namespaces: BTreeMap<u64, String>,
}

impl State {
    /// Takes the snapshot from SPDK.
    pub async fn of_spdk(socket: &Path) -> Self {
        let mut rpc = JsonRpc::connect(socket).await.expect("SPDK's socket");
        let mut state = Self::default();
        for bdev in list(&mut rpc, "bdev_get_bdevs").await {
            let name = text(&bdev, "name");
            let aliases = items(&bdev, "aliases").filter(|alias| **alias != bdev["uuid"]);
            state.aliases.extend(aliases.map(|alias| text(alias, "")));
            let limits = bdev["assigned_rate_limits"].as_object().expect("limits");
            if limits.values().any(|limit| *limit != json!(0)) {
                state.limited.insert(name.clone());
            }
            state.bdevs.insert(name);
        }
        for subsystem in list(&mut rpc, "nvmf_get_subsystems").await {
            if subsystem["subtype"] == "NVMe" {
                let has = Subsystem::of_spdk(&subsystem);
                state.subsystems.insert(text(&subsystem, "nqn"), has);
            }
        }
        state.devices = devices_beside(socket);
        for controller in list(&mut rpc, "bdev_nvme_get_controllers").await {
            let paths = items(&controller, "ctrlrs").count();
            state.paths.insert(text(&controller, "name"), paths);
        }
        state
    }

    /// Takes the snapshot from the API.
    pub async fn of_api(client: &Client) -> Self {
        let list = async |kind, parent: &str| Resource::new(client, kind).list(parent).await;
        let mut state = Self::default();
        for kind in [
            "NullVolume",
            "MallocVolume",
            "AioVolume",
            "EncryptedVolume",
            "DelayVolume",
        ] {
            state.bdevs.extend(list(kind, "").await.iter().map(id));
        }
        for limits in list("QosVolume", "").await {
            state.aliases.insert(id(&limits));
            state.limited.insert(last(&limits["volume_name_ref"]));
        }
        for subsystem in list("NvmeSubsystem", "").await {
            let has = Subsystem::of_api(client, &subsystem).await;
            let nqn = text(&subsystem["spec"], "nqn");
            state.subsystems.insert(nqn, has);
        }
        for device in list("VirtioBlk", "").await {
            let limits = device["max_limit"].as_object();
            if limits.is_some_and(|limits| limits.values().any(|limit| *limit != json!(0))) {
                state.limited.insert(last(&device["volume_name_ref"]));
            }
            state.devices.insert(id(&device));
        }
        for device in list("VirtioScsiController", "").await {
            state.devices.insert(id(&device));
        }
        for controller in list("NvmeRemoteController", "").await {
            let parent = name_of(&controller);
            let paths = list("NvmePath", &parent).await.len();
            if paths > 0 {
                state.paths.insert(id(&controller), paths);
            }
            let request = json!({ "parent": parent });
            let namespaces = client.ok("ListNvmeRemoteNamespaces", request).await;
            let bdevs = items(&namespaces, "nvme_remote_namespaces").map(id);
            state.bdevs.extend(bdevs);
        }
        state
    }
}

impl Subsystem {
    fn of_spdk(subsystem: &Value) -> Self {
        let address = |listener: &Value| match text(listener, "trtype").as_str() {
            "TCP" => tcp(listener),
            other => other.to_owned(),
        };
        let namespace = |namespace: &Value| {
            let nsid = namespace["nsid"].as_u64().expect("a number");
            (nsid, text(namespace, "bdev_name"))
        };
        Self {
            hosts: items(subsystem, "hosts")
                .map(|host| text(host, "nqn"))
                .collect(),
            listeners: items(subsystem, "listen_addresses").map(address).collect(),
            namespaces: items(subsystem, "namespaces").map(namespace).collect(),
        }
    }

    async fn of_api(client: &Client, subsystem: &Value) -> Self {
        let name = name_of(subsystem);
        let address = |controller: Value| match at(&controller, "spec.fabrics_id") {
            Value::Null => "VFIOUSER".to_owned(),
            fabrics => tcp(fabrics),
        };
        let namespace = |namespace: Value| {
            let spec = &namespace["spec"];
            let nsid = spec["host_nsid"].as_u64().expect("a number");
            (nsid, last(&spec["volume_name_ref"]))
        };
        let host = text(&subsystem["spec"], "hostnqn");
        let controllers = Resource::new(client, "NvmeController").list(&name).await;
        let namespaces = Resource::new(client, "NvmeNamespace").list(&name).await;
        let hosts = Resource::new(client, "NvmeHost").list(&name).await;
        let hosts = hosts.iter().map(|host| text(host, "hostnqn"));
        Self {
            hosts: Some(host)
                .filter(|host| !host.is_empty())
                .into_iter()
                .chain(hosts)
                .collect(),
            listeners: controllers.into_iter().map(address).collect(),
            namespaces: namespaces.into_iter().map(namespace).collect(),
        }
    }
}

async fn list(rpc: &mut JsonRpc, method: &str) -> Vec<Value> {
    let all = rpc.call(method, Value::Null).await.expect("an answer");
    all.as_array().expect("a list").clone()
}

fn items<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object[field].as_array().into_iter().flatten()
}

/// Returns a string field, or the value itself if `field` is empty.
fn text(object: &Value, field: &str) -> String {
    let value = if field.is_empty() {
        object
    } else {
        &object[field]
    };
    let text = value.as_str();
    text.unwrap_or_else(|| panic!("no {field} in {object}"))
        .to_owned()
}

fn tcp(address: &Value) -> String {
    format!(
        "TCP {}:{}",
        text(address, "traddr"),
        text(address, "trsvcid")
    )
}

fn id(object: &Value) -> String {
    last(&object["name"])
}

/// Returns the last segment of a resource name.
fn last(name: &Value) -> String {
    let name = text(name, "");
    name.rsplit('/').next().unwrap_or_default().to_owned()
}
