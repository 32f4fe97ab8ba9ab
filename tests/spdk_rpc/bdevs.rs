//! Objects created through SPDK's JSON-RPC are not managed by the API.

use serde_json::json;
use tonic::Code;

use crate::common::{Fixture, Options, Resource, Target, name_of, namespace, subsystem, tcp_path};
use crate::place::{Place, encrypted};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bdevs_created_by_rpc_are_not_api_objects() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "NullVolume");
    place
        .rpc(&["bdev_null_create", "raw", "4", "512"])
        .await
        .expect("made");

    assert!(volumes.names("").await.is_empty(), "a raw bdev is listed");
    assert_eq!(
        volumes
            .get("volumes/raw")
            .await
            .expect_err("a raw bdev is not an object")
            .code(),
        Code::NotFound
    );
    assert_eq!(
        volumes
            .delete("raw")
            .await
            .expect_err("a raw bdev is not an object")
            .code(),
        Code::NotFound
    );
    let object = json!({ "block_size": 512, "blocks_count": 8192 });
    let status = volumes
        .refused("", "raw", object.clone(), Code::AlreadyExists)
        .await;
    assert!(status.message().contains("\"raw\""), "{status}");

    let parent = subsystem(&client, "sub", json!({})).await;
    let shown = namespace(&client, &parent, "raw", json!({})).await;
    let status = volumes
        .refused("", "raw", object.clone(), Code::AlreadyExists)
        .await;
    assert!(status.message().contains("\"raw\""), "{status}");
    let other = Resource::new(&client, "NvmeNamespace");
    let twin = json!({ "spec": { "volume_name_ref": "raw" } });
    other
        .refused(&parent, "twin", twin, Code::FailedPrecondition)
        .await;
    let subsystems = place.rpc(&["nvmf_get_subsystems"]).await.expect("a list");
    let exported = subsystems
        .as_array()
        .expect("a list")
        .iter()
        .any(|s| s["namespaces"][0]["name"] == "raw");
    assert!(exported, "{subsystems}");

    other.deleted(&shown).await;
    place
        .rpc(&["bdev_null_delete", "raw"])
        .await
        .expect("the bdev can be deleted");
    volumes.created("", "raw", object).await;
    assert_eq!(place.bdevs().await, ["raw"]);
    volumes.deleted("volumes/raw").await;
    assert!(place.bdevs().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn controllers_attached_by_rpc_coexist_with_the_apis() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let (export, other) = (Fixture::tcp(&peer, 16).await, Fixture::tcp(&peer, 16).await);
    let client = target.client().await;
    let [remotes, paths] = ["NvmeRemoteController", "NvmePath"].map(|k| Resource::new(&client, k));
    let attach = async |name: &str| {
        let (nqn, port) = (other.nqn.as_str(), other.port.to_string());
        let to = [
            "-a",
            "127.0.0.1",
            "-s",
            &port,
            "-n",
            nqn,
            "-t",
            "tcp",
            "-f",
            "ipv4",
        ];
        let attach = ["bdev_nvme_attach_controller", "-b", name];
        let attached = place.rpc(&[&attach[..], &to].concat()).await;
        attached.expect("attached")
    };
    let detach = async |name: &str| {
        let detached = place.rpc(&["bdev_nvme_detach_controller", name]).await;
        detached.expect("the controller exists")
    };
    attach("raw").await;
    let object = json!({ "multipath": "NVME_MULTIPATH_MULTIPATH" });
    let status = remotes
        .refused("", "raw", object, Code::AlreadyExists)
        .await;
    assert!(status.message().contains("\"raw\""), "{status}");

    // A controller attached by JSON-RPC under the name of a remote controller that has no path.
    let own = crate::common::remote_controller(&client, "own", "MULTIPATH").await;
    detach("raw").await;
    attach("own").await;
    let list = json!({ "parent": own });
    let found = client.ok("ListNvmeRemoteNamespaces", list.clone()).await;
    assert_eq!(found["nvme_remote_namespaces"], json!([]), "{found}");
    let path = tcp_path(export.port, &export.nqn);
    let status = paths
        .refused(&own, "p", path.clone(), Code::FailedPrecondition)
        .await;
    assert!(status.message().contains("not known here"), "{status}");
    detach("own").await;

    // A raw controller for the same subsystem does not keep the API from attaching its own.
    attach("raw").await;
    let path = name_of(&paths.created(&own, "p", path).await);
    let found = client.ok("ListNvmeRemoteNamespaces", list).await;
    assert_eq!(
        found["nvme_remote_namespaces"].as_array().map(Vec::len),
        Some(1)
    );
    paths.deleted(&path).await;
    detach("raw").await;
    target.stop();
    peer.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_bdev_that_replaced_a_volume_is_not_touched() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    let client = target.client().await;
    let object = json!({ "block_size": 512, "blocks_count": 64 });
    for (kind, delete) in [
        ("NullVolume", "bdev_null_delete"),
        ("MallocVolume", "bdev_malloc_delete"),
    ] {
        let volumes = Resource::new(&client, kind);
        let name = name_of(&volumes.created("", "api", object.clone()).await);
        let first = place.rpc(&["bdev_get_bdevs"]).await;
        place.rpc(&[delete, "api"]).await.expect("deleted");
        // A volume whose bdev was deleted is recreated identically by a repeated create or an update.
        volumes.created("", "api", object.clone()).await;
        assert_eq!(place.rpc(&["bdev_get_bdevs"]).await, first, "{kind}");
        place.rpc(&[delete, "api"]).await.expect("deleted");
        let wider = json!({ "blocks_count": 128 });
        volumes.updated(&name, wider, None).await;
        volumes.stats(&name).await;
        place.rpc(&[delete, "api"]).await.expect("deleted");
        let made = place.rpc(&["bdev_null_create", "api", "4", "4096"]).await;
        made.expect("a raw bdev of that name can be created");
        let before = place.rpc(&["bdev_get_bdevs"]).await;

        let state = Code::FailedPrecondition;
        client
            .fails(&format!("Stats{kind}"), json!({ "name": name }), state)
            .await;
        for change in [
            json!({ "blocks_count": 256 }),
            json!({ "block_size": 4096 }),
        ] {
            volumes.update_refused(&name, change, None, state).await;
        }
        volumes.deleted(&name).await;
        assert_eq!(place.rpc(&["bdev_get_bdevs"]).await, before, "{kind}");
        let made = place.rpc(&["bdev_null_delete", "api"]).await;
        made.expect("the raw bdev exists");
    }

    let volumes = Resource::new(&client, "EncryptedVolume");
    crate::common::malloc(&client, "base", 4).await;
    let secret = volumes.created("", "secret", encrypted("base")).await;
    let made = place.rpc(&["bdev_crypto_delete", "secret"]).await;
    made.expect("deleted");
    let made = place.rpc(&["bdev_null_create", "secret", "4", "512"]).await;
    made.expect("a raw bdev of that name can be created");
    let name = json!({ "name": name_of(&secret) });
    for call in ["StatsEncryptedVolume", "DeleteEncryptedVolume"] {
        let state = Code::FailedPrecondition;
        client.fails(call, name.clone(), state).await;
    }
    let made = place.rpc(&["bdev_null_delete", "secret"]).await;
    made.expect("the raw bdev exists");
    volumes.deleted(&name_of(&secret)).await;
    target.stop();
}
