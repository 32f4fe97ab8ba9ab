//! Identities of disks and subsystems as hosts see them: stable across restarts, and unique.

mod common;

use std::sync::Arc;

use common::{JsonRpc, Options, Resource, Target, malloc, name_of, namespace, nqn_of, subsystem};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

const UUID: &str = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
const OTHER: &str = "2b4e28ba-2fa1-11d2-883f-b9a761bde3fb";

struct Place {
    dir: Arc<TempDir>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("opi-").tempdir();
        let dir = Arc::new(dir.expect("a directory"));
        for file in ["configured", "made"] {
            let file = std::fs::File::create(dir.path().join(file)).expect("a file");
            file.set_len(1 << 20).expect("the file can be extended");
        }
        let config = format!(
            "[[volume]]\nkind = \"malloc\"\nname = \"Malloc0\"\nsize-mib = 1\n\
             [[volume]]\nkind = \"null\"\nname = \"Null0\"\nsize-mib = 1\nuuid = \"{OTHER}\"\n\
             [[volume]]\nkind = \"aio\"\nname = \"Aio0\"\nfilename = {:?}\n",
            dir.path().join("configured")
        );
        std::fs::write(dir.path().join("config.toml"), config).expect("a file");
        Self { dir }
    }

    fn options(&self) -> Options {
        let config = self.dir.path().join("config.toml").display().to_string();
        let socket = self.dir.path().join("rpc.sock").display().to_string();
        Options::default().in_dir(Arc::clone(&self.dir)).args([
            "--config",
            &config,
            "--spdk-rpc-socket",
            &socket,
        ])
    }

    async fn rpc(&self, method: &str) -> Value {
        let socket = self.dir.path().join("rpc.sock");
        let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK listens");
        rpc.call(method, Value::Null).await.expect("SPDK answers")
    }

    /// Returns the UUIDs and NGUIDs of the subsystem's namespaces, and its serial number.
    async fn seen(&self, nqn: &str) -> (Vec<(Value, Value)>, Value) {
        let mut all = self.rpc("nvmf_get_subsystems").await;
        let all = all.as_array_mut().expect("a list").iter_mut();
        let mut subsystem = all.filter(|s| s["nqn"] == nqn);
        let subsystem = subsystem.next().expect("the subsystem exists").take();
        let namespaces = subsystem["namespaces"].as_array().expect("a list").iter();
        let ids = namespaces.map(|n| (n["uuid"].clone(), n["nguid"].clone()));
        (ids.collect(), subsystem["serial_number"].clone())
    }

    /// Returns the names and UUIDs of all bdevs.
    async fn uuids(&self) -> Vec<(String, String)> {
        let bdevs = self.rpc("bdev_get_bdevs").await;
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let bdevs = bdevs.as_array().expect("a list").iter();
        let mut all: Vec<_> = bdevs
            .map(|b| (text(&b["name"]), text(&b["uuid"])))
            .collect();
        all.sort();
        all
    }
}

/// Creates the same objects on every instance.
async fn make(target: &Target) {
    let client = target.client().await;
    malloc(&client, "m", 1).await;
    let null = json!({ "block_size": 512, "blocks_count": 64 });
    Resource::new(&client, "NullVolume")
        .created("", "n", null)
        .await;
    let file = json!({ "filename": target.scratch().join("made"), "block_size": 512 });
    let volumes = Resource::new(&client, "AioVolume");
    let made = volumes.created("", "", file).await;
    let shown = subsystem(&client, "s", json!({})).await;
    namespace(&client, &shown, "volumes/m", json!({})).await;
    namespace(&client, &shown, &name_of(&made), json!({})).await;
    namespace(&client, &shown, "Malloc0", json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn derived_uuids_are_stable_across_restarts_and_unique_per_instance() {
    let place = Place::new();
    let mut target = Target::start_with(place.options()).await;
    make(&target).await;
    let before = (place.uuids().await, place.seen(&nqn_of("s")).await);
    let configured = before.0.iter().find(|(name, _)| name == "Null0");
    assert_eq!(configured.map(|(_, uuid)| uuid.as_str()), Some(OTHER));
    target.stop_with(rustix::process::Signal::TERM);

    let again = Target::start_with(place.options().after(&target)).await;
    let after = (place.uuids().await, place.seen(&nqn_of("s")).await);
    let ids = |all: &[(String, String)]| {
        let mut ids: Vec<_> = all.iter().map(|(_, uuid)| uuid.clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&before.0), ids(&after.0));
    assert_eq!(before.1, after.1);
    drop(target);
    again.stop();

    let other = Place::new();
    let target = Target::start_with(other.options()).await;
    make(&target).await;
    for uuid in ids(&other.uuids().await)
        .iter()
        .filter(|uuid| *uuid != OTHER)
    {
        assert!(
            !ids(&before.0).contains(uuid),
            "{uuid} is used by another instance"
        );
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn namespace_identifiers_are_unique_within_a_subsystem() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "MallocVolume");
    let namespaces = Resource::new(&client, "NvmeNamespace");
    let mut names = Vec::new();
    for id in ["a", "b", "c", "d"] {
        names.push(malloc(&client, id, 1).await);
    }
    let derived = volumes.get(&names[0]).await.expect("the volume exists")["uuid"].clone();
    let one = subsystem(&client, "one", json!({})).await;
    let first = namespace(&client, &one, &names[0], json!({ "eui64": 7 })).await;
    let second = namespace(&client, &one, &names[1], json!({ "uuid": UUID })).await;
    let (ids, _) = place.seen(&nqn_of("one")).await;
    let nguid = UUID.replace('-', "").to_uppercase();
    assert_eq!(ids[1], (json!(UUID), json!(nguid)));

    for (identifier, has) in [
        (json!({ "uuid": UUID }), &second),
        (json!({ "uuid": nguid }), &second),
        (json!({ "nguid": UUID }), &second),
        (json!({ "uuid": OTHER, "nguid": UUID }), &second),
        (json!({ "eui64": 7 }), &first),
        // Derived from the first namespace's volume.
        (json!({ "uuid": derived }), &first),
        (json!({ "uuid": OTHER, "nguid": derived }), &first),
    ] {
        let mut spec = identifier.clone();
        spec["volume_name_ref"] = names[2].as_str().into();
        let object = json!({ "spec": spec });
        let status = namespaces
            .refused(&one, "", object, Code::AlreadyExists)
            .await;
        let number = if *has == first { "id 1 " } else { "id 2 " };
        let named = status.message().contains(has.as_str()) || status.message().contains(number);
        assert!(named, "{identifier}: {status}");
    }
    // An update is rejected too, and changes nothing.
    let third = namespace(&client, &one, &names[2], json!({ "uuid": OTHER })).await;
    let change = json!({ "spec": { "nguid": UUID, "volume_name_ref": names[2] } });
    namespaces
        .update_refused(&third, change, Some(&["spec.nguid"]), Code::AlreadyExists)
        .await;
    assert_eq!(place.seen(&nqn_of("one")).await.0.len(), 3);
    // A deleted namespace's identifiers are free, and identifiers are unique per subsystem only.
    namespaces.deleted(&second).await;
    let two = subsystem(&client, "two", json!({})).await;
    namespace(&client, &two, &names[1], json!({ "uuid": UUID })).await;
    namespace(&client, &one, &names[3], json!({ "uuid": UUID })).await;

    let (_, one) = place.seen(&nqn_of("one")).await;
    let (_, two) = place.seen(&nqn_of("two")).await;
    assert_ne!(one, two);
    assert_eq!(one.as_str().map(str::len), Some(20), "{one}");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_volume_with_a_used_uuid_is_rejected() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    let client = target.client().await;
    malloc(&client, "m", 1).await;
    let volumes = Resource::new(&client, "MallocVolume");
    let derived = volumes.get("volumes/m").await.expect("the volume exists")["uuid"].clone();
    for uuid in [json!(OTHER), derived] {
        let object = json!({ "block_size": 512, "blocks_count": 64, "uuid": uuid });
        volumes.refused("", "x", object, Code::AlreadyExists).await;
    }
    target.stop();
}
