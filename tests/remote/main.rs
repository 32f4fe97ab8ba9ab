//! Remote NVMe controllers: a peer exports a subsystem, the target attaches and re-exports it, and hosts
//! do verified I/O through both.

#[path = "../common/mod.rs"]
mod common;

mod psk;
mod resize;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{
    Client, Fixture, Initiator, Options, Resource, Target, eventually, name_of, namespace, nqn_of,
    subsystem, tcp_controller, tcp_path, unique,
};
use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::own::{EventType, ListObjectsRequest, WatchEventsRequest};
use opi_spdk::api::storage::nvme_remote_controller_service_client::NvmeRemoteControllerServiceClient;
use opi_spdk::api::storage::{
    CreateNvmePathRequest, FabricsPath, NvmeAddressFamily, NvmePath, NvmeTransportType,
};
use serde_json::{Value, json};
use tonic::Code;

/// The target under test, and the peer that it attaches.
struct Lab {
    target: Target,
    peer: Target,
    client: Client,
}

impl Lab {
    async fn new() -> Self {
        let target = Target::start_with(Options::default().alone()).await;
        let peer = Target::start_with(Options::default().beside(&target)).await;
        let client = target.client().await;
        Self {
            target,
            peer,
            client,
        }
    }

    fn resource(&self, message: &'static str) -> Resource {
        Resource::new(&self.client, message)
    }

    async fn controller(&self, id: &str, multipath: &str) -> String {
        common::remote_controller(&self.client, id, multipath).await
    }

    async fn path(&self, controller: &str, id: &str, port: u16, nqn: &str) -> String {
        let made = self
            .resource("NvmePath")
            .created(controller, id, tcp_path(port, nqn))
            .await;
        name_of(&made)
    }

    async fn remote_namespaces(&self, controller: &str) -> Vec<Value> {
        let request = json!({ "parent": controller });
        let mut answer = self.client.ok("ListNvmeRemoteNamespaces", request).await;
        answer["nvme_remote_namespaces"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Exports a volume of the target under test; returns an initiator and the namespace's name.
    async fn export(&self, volume: &str) -> (Initiator, String) {
        let id = unique("again");
        let over = subsystem(&self.client, &id, json!({})).await;
        let namespace = namespace(&self.client, &over, volume, json!({})).await;
        let (_, port) = tcp_controller(&self.client, &over).await;
        (Initiator::tcp(port, &nqn_of(&id)), namespace)
    }

    fn stop(self) {
        self.target.stop();
        self.peer.stop();
    }
}

fn ops(stats: &Value) -> i64 {
    let count = |name: &str| stats[name].as_i64().expect("a counter");
    count("read_ops_count") + count("write_ops_count")
}

#[tokio::test]
async fn a_remote_namespace_is_a_volume_and_its_last_path_is_not_deleted_in_use() {
    let lab = Lab::new().await;
    let export = Fixture::tcp(&lab.peer, 16).await;
    let controller = lab.controller("nvmetcp12", "DISABLE").await;
    assert!(lab.remote_namespaces(&controller).await.is_empty());
    let path = lab.path(&controller, "p", export.port, &export.nqn).await;

    let found = lab.remote_namespaces(&controller).await;
    let volume = "nvmeRemoteControllers/nvmetcp12/nvmeRemoteNamespaces/nvmetcp12n1";
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (name_of(&found[0]).as_str(), &found[0]["nsid"]),
        (volume, &json!(1))
    );
    let uuid = export
        .resource("MallocVolume")
        .get(&export.volume)
        .await
        .expect("the volume exists");
    assert_eq!(found[0]["uuid"], uuid["uuid"]);
    let got = lab
        .client
        .ok("GetNvmeRemoteNamespace", json!({ "name": volume }))
        .await;
    assert_eq!(got, found[0]);
    let missing = json!({ "name": volume.replace("n1", "n2") });
    lab.client
        .fails("GetNvmeRemoteNamespace", missing, Code::NotFound)
        .await;

    for reference in [volume, "nvmetcp12n1", "volumes/nvmetcp12n1"] {
        let (host, namespace) = lab.export(reference).await;
        for (kind, name) in [("NvmePath", &path), ("NvmeRemoteController", &controller)] {
            let status = lab
                .resource(kind)
                .delete(name)
                .await
                .expect_err("the object is in use");
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            let user = if kind == "NvmePath" {
                &namespace
            } else {
                &path
            };
            assert!(status.message().contains(user.as_str()), "{status}");
        }
        host.verify(lab.target.scratch(), 1)
            .await
            .expect("the data is correct");
        // SPDK counts per path only while the namespace is open.
        assert!(ops(&lab.resource("NvmePath").stats(&path).await) > 0);
        lab.resource("NvmeNamespace").deleted(&namespace).await;
    }
    assert!(
        ops(&lab
            .resource("NvmeRemoteController")
            .stats(&controller)
            .await)
            > 0
    );

    lab.resource("NvmePath").deleted(&path).await;
    assert!(lab.remote_namespaces(&controller).await.is_empty());
    lab.resource("NvmeRemoteController")
        .deleted(&controller)
        .await;
    lab.stop();
}

#[tokio::test]
async fn paths_join_by_multipath_mode_and_io_survives_the_loss_of_one() {
    let lab = Lab::new().await;
    let export = Fixture::tcp(&lab.peer, 16).await;
    let (_, second_port) = tcp_controller(&export.client, &export.subsystem).await;
    for mode in ["DISABLE", "FAILOVER", "MULTIPATH"] {
        let id = mode.to_lowercase();
        let controller = lab.controller(&id, mode).await;
        let first = lab
            .path(&controller, "first", export.port, &export.nqn)
            .await;
        let paths = lab.resource("NvmePath");
        let other = tcp_path(second_port, &export.nqn);
        if mode == "DISABLE" {
            let status = paths
                .refused(&controller, "second", other, Code::FailedPrecondition)
                .await;
            assert!(status.message().contains(&first), "{status}");
            paths.deleted(&first).await;
            continue;
        }
        let second = name_of(&paths.created(&controller, "second", other).await);
        let (host, namespace) = lab.export(&format!("{id}n1")).await;
        host.verify(lab.target.scratch(), 1)
            .await
            .expect("the data is correct");
        let used = [
            ops(&paths.stats(&first).await),
            ops(&paths.stats(&second).await),
        ];
        assert!(used[0] > 0, "{mode}: {used:?}");
        assert_eq!(used[1] > 0, mode == "MULTIPATH", "{mode}: {used:?}");

        let load = host.load(4).await;
        paths.deleted(&first).await;
        let report = load.ended().await.expect("I/O continues on the other path");
        assert!(!report.contains("completed with error"), "{report}");
        let status = paths
            .delete(&second)
            .await
            .expect_err("the last path is in use");
        assert!(status.message().contains(&namespace), "{status}");

        let before = ops(&paths.stats(&second).await);
        lab.client
            .ok("ResetNvmeRemoteController", json!({ "name": controller }))
            .await;
        host.verify(lab.target.scratch(), 1)
            .await
            .expect("the path reconnects after the reset");
        assert!(ops(&paths.stats(&second).await) > before);
        lab.resource("NvmeNamespace").deleted(&namespace).await;
        paths.deleted(&second).await;
    }
    lab.stop();
}

#[tokio::test]
async fn an_unresponsive_peer_fails_its_call_in_time_and_delays_no_other() {
    let lab = Lab::new().await;
    let controller = lab.controller("silent", "MULTIPATH").await;
    let mute = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = mute.local_addr().expect("an address").port();
    let mut remote = NvmeRemoteControllerServiceClient::new(lab.client.channel());
    let mut request = tonic::Request::new(CreateNvmePathRequest {
        parent: controller.clone(),
        nvme_path_id: "p".into(),
        nvme_path: Some(NvmePath {
            trtype: NvmeTransportType::Tcp.into(),
            traddr: "127.0.0.1".into(),
            fabrics: Some(FabricsPath {
                adrfam: NvmeAddressFamily::Ipv4.into(),
                trsvcid: port.into(),
                subnqn: nqn_of("nobody"),
                ..Default::default()
            }),
            ..Default::default()
        }),
    });
    request.set_timeout(Duration::from_secs(3));
    let begin = Instant::now();
    let waiting = tokio::spawn(async move { remote.create_nvme_path(request).await });

    let volume = json!({ "block_size": 512, "blocks_count": 64 });
    let mut others = 0;
    while !waiting.is_finished() {
        let one = Instant::now();
        lab.resource("NullVolume")
            .created("", "other", volume.clone())
            .await;
        lab.resource("NullVolume").deleted("other").await;
        lab.resource("NvmeRemoteController")
            .get(&controller)
            .await
            .expect("the controller exists");
        assert!(
            one.elapsed() < Duration::from_secs(1),
            "other calls took {:?}",
            one.elapsed()
        );
        others += 1;
    }
    assert!(others > 1, "the call did not wait for the peer");
    let status = waiting
        .await
        .expect("the call has ended")
        .expect_err("the peer does not answer");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );

    drop(mute);
    let refused = lab.resource("NvmePath");
    let begin = Instant::now();
    refused
        .refused(
            &controller,
            "p",
            tcp_path(port, &nqn_of("nobody")),
            Code::Unavailable,
        )
        .await;
    assert!(
        begin.elapsed() < Duration::from_secs(9),
        "{:?}",
        begin.elapsed()
    );

    let export = Fixture::tcp(&lab.peer, 16).await;
    let path = lab.path(&controller, "p", export.port, &export.nqn).await;
    lab.resource("NvmePath").deleted(&path).await;
    lab.resource("NvmeRemoteController")
        .deleted(&controller)
        .await;
    lab.stop();
}

#[tokio::test]
async fn a_dropped_path_reconnects() {
    let mut lab = Lab::new().await;
    let uuid = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
    let port = common::free_port();
    let serve = async |peer: &Target| {
        let elsewhere = peer.client().await;
        let volume = json!({ "block_size": 512, "blocks_count": 32768, "uuid": uuid });
        Resource::new(&elsewhere, "MallocVolume")
            .created("", "v", volume)
            .await;
        let over = subsystem(&elsewhere, "s", json!({})).await;
        namespace(
            &elsewhere,
            &over,
            "volumes/v",
            json!({ "uuid": uuid, "host_nsid": 1 }),
        )
        .await;
        Resource::new(&elsewhere, "NvmeController")
            .created(&over, "c", common::tcp_spec(port))
            .await;
    };
    serve(&lab.peer).await;
    let controller = lab.controller("steady", "DISABLE").await;
    let path = lab.path(&controller, "p", port, &nqn_of("s")).await;
    let (host, again) = lab.export("steadyn1").await;
    host.verify(lab.target.scratch(), 1)
        .await
        .expect("the data is correct");

    let client = lab.target.client().await;
    let mut watching = ObjectServiceClient::new(client.channel());
    let request = WatchEventsRequest::default();
    let events = watching.watch_events(request).await.expect("a watch");
    let mut events = events.into_inner();
    lab.peer.kill();
    let volumes = lab.resource("NullVolume");
    volumes
        .created(
            "",
            "meanwhile",
            json!({ "block_size": 512, "blocks_count": 64 }),
        )
        .await;
    let objects = ObjectServiceClient::new(client.channel());
    let told = async || {
        let listed = objects
            .clone()
            .list_objects(ListObjectsRequest::default())
            .await;
        let listed = listed.ok()?.into_inner().objects;
        let says = |name: &str, what: &str| {
            let mut of = listed.iter().filter(|one| one.name == name);
            of.any(|one| one.reason.contains(what) && one.since.is_some())
        };
        let both = says(&path, "has dropped") && says(&controller, "no path to");
        both.then_some(())
    };
    eventually(
        "the list of objects reports the lost path",
        Duration::from_secs(15),
        told,
    )
    .await;
    lab.peer = Target::start_with(Options::default().beside(&lab.target)).await;
    serve(&lab.peer).await;
    eventually("the path reconnects", Duration::from_secs(30), async || {
        host.verify(lab.target.scratch(), 1).await.ok()
    })
    .await;
    let online = async || {
        let namespace = lab.resource("NvmeNamespace").get(&again).await.ok()?;
        (namespace["status"]["oper_state"] == "OPER_STATE_ONLINE").then_some(())
    };
    eventually("the namespace is online", Duration::from_secs(5), online).await;
    let log = lab.target.log();
    for line in ["has dropped", "it is tried again until", "is back"] {
        assert!(log.contains(line), "{line}:\n{log}");
    }
    for what in [EventType::PathDown, EventType::PathUp] {
        let told = async {
            loop {
                let event = events.message().await.expect("no error").expect("an event");
                if event.r#type() == what {
                    return event;
                }
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(10), told).await;
        let event = told.unwrap_or_else(|_| panic!("no {what:?} event"));
        assert_eq!(event.object, path);
        assert!(event.reason.contains(&port.to_string()), "{event:?}");
    }
    drop(watching);
    lab.stop();
}

#[tokio::test]
async fn paths_to_missing_hardware_are_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let object = json!({ "multipath": "NVME_MULTIPATH_DISABLE" });
    Resource::new(&client, "NvmeRemoteController")
        .created("", "here", object)
        .await;
    let paths = Resource::new(&client, "NvmePath");
    let pcie = json!({ "trtype": "NVME_TRANSPORT_TYPE_PCIE", "traddr": "ffff:ff:1f.7" });
    let parent = "nvmeRemoteControllers/here";
    let status = paths
        .refused(parent, "p", pcie, Code::InvalidArgument)
        .await;
    common::expect_invalid(&status, "nvme_path.traddr");
    if std::fs::read_dir("/sys/class/infiniband").map_or(0, Iterator::count) == 0 {
        let mut rdma = tcp_path(4420, &nqn_of("x"));
        rdma["trtype"] = "NVME_TRANSPORT_TYPE_RDMA".into();
        let status = paths
            .refused(parent, "p", rdma, Code::FailedPrecondition)
            .await;
        assert!(status.message().contains("no RDMA device"), "{status}");
    }
    target.stop();
}
