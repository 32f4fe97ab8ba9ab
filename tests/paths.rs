//! Paths to remote controllers: how they connect, which volumes they bring, and their isolation from
//! each other when a peer falls silent.

mod common;

use std::time::{Duration, Instant};

use common::{
    Fixture, Initiator, Options, Relay, Resource, Target, Tool, eventually, free_port, malloc,
    name_of, namespace, nqn_of, remote_controller, subsystem, tcp_controller, tcp_path,
};
use opi_spdk::api::storage::ResetNvmeRemoteControllerRequest;
use opi_spdk::api::storage::nvme_remote_controller_service_client::NvmeRemoteControllerServiceClient;
use serde_json::json;
use tonic::Code;

/// Starts a target, and a peer that exports a subsystem to it.
async fn start(options: Options) -> (Target, Target, Fixture) {
    let target = Target::start_with(options).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    (target, peer, export)
}

#[tokio::test]
async fn a_reset_reconnects_working_paths_and_names_the_silent_one() {
    let (target, peer, export) = start(Options::default().alone()).await;
    let relay = Relay::to(export.port).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let remote = remote_controller(&client, "r", "MULTIPATH").await;
    let reset = async |limit| {
        let mut service = NvmeRemoteControllerServiceClient::new(client.channel());
        let name = remote.clone();
        let mut request = tonic::Request::new(ResetNvmeRemoteControllerRequest { name });
        request.set_timeout(limit);
        let begin = Instant::now();
        let outcome = service.reset_nvme_remote_controller(request).await;
        assert!(begin.elapsed() < limit, "{:?}", begin.elapsed());
        outcome
    };
    let limit = Duration::from_secs(3);
    reset(limit)
        .await
        .expect("a controller without paths can be reset");
    for (id, port) in [("silent", relay.port), ("works", export.port)] {
        let path = tcp_path(port, &export.nqn);
        of("NvmePath").created(&remote, id, path).await;
    }
    let over = subsystem(&client, "again", json!({})).await;
    namespace(&client, &over, "rn1", json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("again"));
    let verified = async || host.verify(target.scratch(), 1).await;
    verified().await.expect("the data is correct");
    reset(limit).await.expect("both paths reconnect");

    // SPDK's lines reach the log asynchronously.
    let resets = async |count: usize| {
        let log = eventually("the resets are logged", limit, async || {
            let log = target.log();
            let seen = log.matches("Resetting controller successful").count();
            (seen >= count).then_some((seen, log))
        });
        let (seen, log) = log.await;
        assert_eq!(seen, count, "{log}");
    };
    resets(2).await;
    relay.fall_silent(true);
    for attempt in 1..=2 {
        let status = reset(limit).await.expect_err("one path is silent");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        let named = |port: u16| status.message().contains(&format!("127.0.0.1:{port} "));
        assert!(named(relay.port) && !named(export.port), "{status}");
        resets(2 + attempt).await;
    }
    verified().await.expect("I/O uses the working path");
    target.stop();
    peer.stop();
}

#[tokio::test]
async fn a_path_uses_its_source_address_and_its_controllers_digests() {
    let (target, peer, export) = start(Options::default()).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    for (id, header, data) in [
        ("none", false, false),
        ("header", true, false),
        ("data", false, true),
        ("both", true, true),
    ] {
        let relay = Relay::to(export.port).await;
        let object = json!({
            "multipath": "NVME_MULTIPATH_DISABLE",
            "tcp": { "hdgst": header, "ddgst": data },
        });
        let remote = name_of(&of("NvmeRemoteController").created("", id, object).await);
        let mut path = tcp_path(relay.port, &export.nqn);
        path["fabrics"]["source_traddr"] = "127.0.0.9".into();
        let path = name_of(&of("NvmePath").created(&remote, "path", path).await);
        let over = subsystem(&client, id, json!({})).await;
        let shown = namespace(&client, &over, &format!("{id}n1"), json!({})).await;
        let (controller, port) = tcp_controller(&client, &over).await;
        let host = Initiator::tcp(port, &nqn_of(id));
        host.verify(target.scratch(), 1)
            .await
            .expect("the data is correct");

        let arrivals = relay.arrivals();
        assert!(
            arrivals.len() >= 2,
            "an admin and an I/O queue: {arrivals:?}"
        );
        for arrival in arrivals {
            assert_eq!(arrival.from.ip().to_string(), "127.0.0.9");
            // ICReq: the PDU type in byte 0 is 0, DGST is byte 11.
            let [kind, digests] = [0, 11].map(|at| arrival.greeting[at]);
            let wanted = u8::from(header) | u8::from(data) << 1;
            assert_eq!((kind, digests), (0, wanted), "{id}");
        }
        of("NvmeController").deleted(&controller).await;
        of("NvmeNamespace").deleted(&shown).await;
        of("NvmePath").deleted(&path).await;
    }
    target.stop();
    peer.stop();
}

#[tokio::test]
async fn a_path_with_a_duplicate_namespace_is_rejected() {
    let (target, peer, export) = start(Options::default()).await;
    let far = export.resource("MallocVolume").get(&export.volume).await;
    let uuid = far.expect("the volume exists")["uuid"].clone();
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let object = json!({ "block_size": 512, "blocks_count": 64, "uuid": uuid });
    let twin = name_of(&of("MallocVolume").created("", "twin", object).await);
    let remote = remote_controller(&client, "r", "DISABLE").await;
    let path = || tcp_path(export.port, &export.nqn);
    let paths = of("NvmePath");
    let refused = paths
        .refused(&remote, "path", path(), Code::FailedPrecondition)
        .await;
    for part in ["namespace 1", "\"twin\""] {
        assert!(refused.message().contains(part), "{part}: {refused}");
    }
    assert!(paths.names(&remote).await.is_empty());

    of("MallocVolume").deleted(&twin).await;
    paths.created(&remote, "path", path()).await;
    let list = json!({ "parent": remote });
    let found = client.ok("ListNvmeRemoteNamespaces", list).await;
    let found = found["nvme_remote_namespaces"].as_array();
    assert_eq!(found.map(Vec::len), Some(1));
    target.stop();
    peer.stop();
}

#[tokio::test]
async fn namespaces_added_later_use_all_paths() {
    let (options, socket) = Options::default().with_rpc();
    let (target, peer, export) = start(options).await;
    let (_, second) = tcp_controller(&export.client, &export.subsystem).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let remote = remote_controller(&client, "r", "MULTIPATH").await;
    for (id, port) in [("a", export.port), ("b", second)] {
        let path = tcp_path(port, &export.nqn);
        of("NvmePath").created(&remote, id, path).await;
    }
    let late = malloc(&export.client, "late", 16).await;
    namespace(&export.client, &export.subsystem, &late, json!({})).await;
    let soon = Duration::from_secs(10);
    eventually("the new namespace uses both paths", soon, async || {
        let bdev = Tool::rpc(&socket).args(["bdev_get_bdevs", "-b", "rn2"]);
        let bdev = bdev.run().await.ok()?;
        bdev.contains("\"active_active\"").then_some(())
    })
    .await;
    target.stop();
    peer.stop();
}

#[tokio::test]
async fn a_silent_peer_does_not_block_the_stop() {
    for under_io in [false, true] {
        let (target, peer, export) = start(Options::default()).await;
        let relay = Relay::to(export.port).await;
        let client = target.client().await;
        let of = |message| Resource::new(&client, message);
        let remote = remote_controller(&client, "r", "DISABLE").await;
        let path = tcp_path(relay.port, &export.nqn);
        of("NvmePath").created(&remote, "path", path).await;
        let over = subsystem(&client, "stop", json!({})).await;
        namespace(&client, &over, "rn1", json!({})).await;
        let (_, port) = tcp_controller(&client, &over).await;
        let host = Initiator::tcp(port, &nqn_of("stop"));
        let load = match under_io {
            true => Some(host.load(30).await),
            false => None,
        };
        relay.fall_silent(true);
        target.stop();
        drop(load);
        peer.stop();
    }
}

#[tokio::test]
async fn failover_paths_share_one_source_and_are_detached_completely() {
    let (options, socket) = Options::default().with_rpc();
    let (target, peer, export) = start(options).await;
    let (_, second) = tcp_controller(&export.client, &export.subsystem).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let remote = remote_controller(&client, "r", "FAILOVER").await;
    let paths = of("NvmePath");
    let from = |port: u16, source: &str| {
        let mut path = tcp_path(port, &export.nqn);
        path["fabrics"]["source_traddr"] = source.into();
        path
    };
    paths
        .created(&remote, "a", from(export.port, "127.0.0.9"))
        .await;
    let mut port = from(second, "127.0.0.9");
    port["fabrics"]["source_trsvcid"] = free_port().into();
    paths
        .refused(&remote, "b", port, Code::FailedPrecondition)
        .await;
    for (source, hostnqn) in [
        ("127.0.0.8", None),
        ("", None),
        ("127.0.0.9", Some("other")),
    ] {
        let mut path = from(second, source);
        if let Some(other) = hostnqn {
            path["fabrics"]["hostnqn"] = nqn_of(other).into();
        }
        let status = paths
            .refused(&remote, "b", path, Code::FailedPrecondition)
            .await;
        let what = "all paths of the failover controller";
        assert!(status.message().contains(what), "{status}");
    }
    // An invalid update changes nothing: the existing path is not detached first.
    let a = format!("{remote}/nvmePaths/a");
    let fields = ["traddr", "fabrics"];
    let b = paths.created(&remote, "b", from(second, "127.0.0.9")).await;
    let (_, third) = tcp_controller(&export.client, &export.subsystem).await;
    let seen = async || {
        Tool::rpc(&socket)
            .arg("bdev_nvme_get_controllers")
            .run()
            .await
    };
    let before = seen().await.expect("SPDK answers");
    let elsewhere = from(third, "127.0.0.8");
    paths
        .update_refused(&a, elsewhere, Some(&fields), Code::FailedPrecondition)
        .await;
    assert_eq!(seen().await, Ok(before));
    paths.deleted(&name_of(&b)).await;
    // The only path may be updated nevertheless, even in address and source at once.
    let other = from(second, "127.0.0.8");
    paths.updated(&a, other, Some(&fields)).await;
    let back = from(export.port, "127.0.0.9");
    paths.updated(&a, back, Some(&fields)).await;
    // A deleted path is detached completely, so that it can be created again.
    for _ in 0..2 {
        let path = paths.created(&remote, "b", from(second, "127.0.0.9")).await;
        paths.deleted(&name_of(&path)).await;
    }
    target.stop();
    peer.stop();
}

#[tokio::test]
async fn paths_with_different_sources_are_distinct() {
    let (target, peer, export) = start(Options::default()).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let remote = remote_controller(&client, "r", "MULTIPATH").await;
    let paths = of("NvmePath");
    for (id, source) in [("a", "127.0.0.8"), ("b", "127.0.0.9")] {
        let mut path = tcp_path(export.port, &export.nqn);
        path["fabrics"]["source_traddr"] = source.into();
        path["fabrics"]["hostnqn"] = nqn_of(id).into();
        paths.created(&remote, id, path).await;
    }
    let over = subsystem(&client, "again", json!({})).await;
    namespace(&client, &over, "rn1", json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("again"));
    let verified = async || host.verify(target.scratch(), 1).await;
    verified().await.expect("the data is correct");
    let object = json!({ "name": remote });
    client.ok("ResetNvmeRemoteController", object).await;

    let ops = async |id: &str| {
        let stats = paths.stats(&format!("{remote}/nvmePaths/{id}")).await;
        stats["read_ops_count"].as_i64().expect("a count")
    };
    // SPDK cannot detach a single path that has no source address.
    let mut path = tcp_path(export.port, &export.nqn);
    path["fabrics"]["hostnqn"] = nqn_of("c").into();
    let status = paths
        .refused(&remote, "c", path, Code::FailedPrecondition)
        .await;
    assert!(status.message().contains("source address"), "{status}");

    let (a, b) = (ops("a").await, ops("b").await);
    assert!(a > 0 && b > 0, "{a} and {b}");
    paths.deleted(&format!("{remote}/nvmePaths/a")).await;
    let before = ops("b").await;
    verified().await.expect("I/O uses the remaining path");
    assert!(ops("b").await > before);
    target.stop();
    peer.stop();
}
