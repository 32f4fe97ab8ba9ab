//! Comparison of the objects in SPDK with those that the API lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Client, Resource, Tool, devices_beside, eventually, name_of};

/// SPDK's JSON-RPC.
pub struct Spdk {
    pub socket: PathBuf,
}

impl Spdk {
    pub async fn list(&self, command: &str) -> Vec<Value> {
        let text = Tool::rpc(&self.socket)
            .arg(command)
            .run()
            .await
            .expect("SPDK answers");
        serde_json::from_str(&text).expect("a list")
    }

    async fn names(&self, command: &str, field: &str) -> BTreeSet<String> {
        let all = self.list(command).await;
        all.iter()
            .map(|item| item[field].as_str().expect("a text").to_owned())
            .collect()
    }
}

/// Returns the last segment of a resource name.
fn id_of(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

async fn ids(client: &Client, kinds: &[&'static str]) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for kind in kinds {
        ids.extend(
            Resource::new(client, kind)
                .names("")
                .await
                .iter()
                .map(|name| id_of(name)),
        );
    }
    ids
}

/// Lists the names of all objects of a kind, in all parents, and checks that Get agrees with List.
pub async fn all_names(client: &Client, kind: &'static str) -> Vec<String> {
    let resource = Resource::new(client, kind);
    let mut names = Vec::new();
    for parent in resource.parents().await {
        for object in resource.list(&parent).await {
            let name = name_of(&object);
            assert_eq!(
                resource.get(&name).await.expect("a listed object exists"),
                object
            );
            names.push(name);
        }
    }
    names
}

pub async fn check_against_spdk(client: &Client, spdk: &Spdk) {
    // A remote namespace appears and disappears with its peer, here another subsystem of the same
    // target: poll.
    eventually(
        "the API's volumes equal SPDK's bdevs",
        Duration::from_secs(20),
        async || {
            let mut volumes = ids(
                client,
                &[
                    "NullVolume",
                    "MallocVolume",
                    "AioVolume",
                    "EncryptedVolume",
                    "DelayVolume",
                ],
            )
            .await;
            for remote in Resource::new(client, "NvmeRemoteController")
                .names("")
                .await
            {
                let list = client
                    .ok("ListNvmeRemoteNamespaces", json!({ "parent": remote }))
                    .await;
                let list = list["nvme_remote_namespaces"]
                    .as_array()
                    .expect("a list")
                    .clone();
                volumes.extend(list.iter().map(|namespace| id_of(&name_of(namespace))));
            }
            let bdevs = spdk.names("bdev_get_bdevs", "name").await;
            if volumes != bdevs {
                eprintln!("volumes {volumes:?}, bdevs {bdevs:?}");
            }
            (volumes == bdevs).then_some(())
        },
    )
    .await;
    let sockets = ids(client, &["VirtioBlk", "VirtioScsiController"]).await;
    assert_eq!(devices_beside(&spdk.socket), sockets);

    let mut subsystems = BTreeMap::new();
    for object in Resource::new(client, "NvmeSubsystem").list("").await {
        let name = name_of(&object);
        let count = async |kind| Resource::new(client, kind).names(&name).await.len();
        let nqn = object["spec"]["nqn"].as_str().expect("a text").to_owned();
        subsystems.insert(
            nqn,
            (count("NvmeNamespace").await, count("NvmeController").await),
        );
    }
    let len = |value: &Value| value.as_array().map_or(0, Vec::len);
    let there: BTreeMap<String, (usize, usize)> = (spdk.list("nvmf_get_subsystems").await.iter())
        .filter(|subsystem| subsystem["subtype"] == "NVMe")
        .map(|subsystem| {
            let nqn = subsystem["nqn"].as_str().expect("a text").to_owned();
            (
                nqn,
                (
                    len(&subsystem["namespaces"]),
                    len(&subsystem["listen_addresses"]),
                ),
            )
        })
        .collect();
    assert_eq!(
        subsystems, there,
        "namespaces and controllers of each subsystem"
    );
}
