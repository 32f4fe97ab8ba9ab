//! A device that fails I/O is reported by the volume's state and reason, an event, one log line and a
//! metric, until it recovers.

use std::fs::File;
use std::time::Duration;

use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::own::{Condition, Event, EventType, ListObjectsRequest, WatchEventsRequest};
use serde_json::json;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::common::nvme_tcp::{Command, Digests, Identity, Pdu, Sgl};
use crate::common::{
    Initiator, Loop, Resource, Scrape, Target, eventually, malloc, name_of, namespace, nqn_of,
    subsystem, tcp_controller,
};

const SOON: Duration = Duration::from_secs(30);
const SIZE: u64 = 16 << 20;

/// Status code type 2, status code 0x85: Compare Failure.
const COMPARE_FAILURE: u16 = 0x285;

/// Waits for the next event of this type.
async fn next(events: &mut Streaming<Event>, wanted: EventType) -> Event {
    let found = async {
        loop {
            let event = events.message().await.expect("no error").expect("no end");
            if event.r#type() == wanted {
                return event;
            }
        }
    };
    let found = tokio::time::timeout(SOON, found).await;
    found.unwrap_or_else(|_| panic!("no {wanted:?} within {SOON:?}"))
}

/// Compares block 0 of namespace 2 with different data; returns the status.
fn compare(port: u16, nqn: &str) -> u16 {
    let identity = Identity::new(port, nqn).named("comparing");
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    let cid = io.cid();
    let command = Command::io(5, cid, 2, 0, 1).sgl(Sgl::InCapsule(512));
    io.send(&Pdu::capsule(command, &[7; 512]))
        .expect("the command is sent");
    io.completion(cid, &[]).expect("a completion").0.status() & 0x7ff
}

/// Returns condition and reason of an object.
async fn condition(service: &mut ObjectServiceClient<Channel>, name: &str) -> (Condition, String) {
    let page = service.list_objects(ListObjectsRequest::default()).await;
    let objects = page.expect("a page").into_inner().objects;
    let found = objects.into_iter().find(|object| object.typed_name == name);
    let found = found.unwrap_or_else(|| panic!("no {name}"));
    (found.condition(), found.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_failing_device_is_reported_until_it_recovers() {
    let target = Target::start().await;
    let client = target.client().await;
    let mut service = ObjectServiceClient::new(client.channel());
    let watch = service.watch_events(WatchEventsRequest::default()).await;
    let mut events = watch.expect("a watch").into_inner();
    let path = target.scratch().join("beneath");
    let beneath = File::create(&path).expect("a file");
    beneath.set_len(SIZE).expect("the file can be extended");
    let device = Loop::over(&path, 512);
    let object = json!({ "filename": device.0 });
    let volume = name_of(
        &Resource::new(&client, "AioVolume")
            .created("", "v", object)
            .await,
    );
    let other = malloc(&client, "other", 16).await;
    let over = subsystem(&client, "s", json!({})).await;
    let on_device = namespace(&client, &over, &volume, json!({ "host_nsid": 1 })).await;
    let on_other = namespace(&client, &over, &other, json!({ "host_nsid": 2 })).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("s"));
    let namespaces = Resource::new(&client, "NvmeNamespace");
    let state = async |name: &str| {
        let now = namespaces.get(name).await.expect("the namespace exists");
        now["status"]["oper_state"].as_str().map(str::to_owned)
    };
    let copy = target.scratch().join("copy");
    let read = async |nsid| host.copy_out(target.scratch(), nsid, 64, &copy).await;
    read(1).await.expect("the namespace can be read");
    // A failed Compare is not a device failure.
    assert_eq!(compare(port, &nqn_of("s")), COMPARE_FAILURE);

    // The device keeps its size, but its backing file is empty.
    beneath.set_len(0).expect("the file can be truncated");
    // SPDK's copy tool, which retries failed reads three times, does not always report them.
    let _told = read(1).await;
    let told = next(&mut events, EventType::VolumeFails).await;
    assert_eq!(told.object, "aioVolumes/v");
    assert!(told.reason.contains("reads so far"), "{told:?}");
    assert_eq!(
        state(&on_device).await.as_deref(),
        Some("OPER_STATE_OFFLINE")
    );
    assert_eq!(state(&on_other).await.as_deref(), Some("OPER_STATE_ONLINE"));
    for name in ["aioVolumes/v", &on_device] {
        let (condition, reason) = condition(&mut service, name).await;
        assert_eq!(condition, Condition::Applied, "{name}");
        assert!(reason.contains("fails I/O"), "{name}: {reason}");
    }
    let (_, reason) = condition(&mut service, "mallocVolumes/other").await;
    assert_eq!(reason, "");
    let scrape = Scrape::of(&target).await;
    let failed = |volume: &str, io: &str| {
        let labels = [("volume", volume), ("io", io)];
        scrape.value("opi_spdk_volume_io_errors_total", &labels)
    };
    let reads = failed(&volume, "read");
    assert!(reads >= 1.0, "{reads}");
    for io in ["write", "flush", "other"] {
        assert_eq!(failed(&volume, io), 0.0, "{io}");
    }
    for io in ["read", "other"] {
        assert_eq!(failed(&other, io), 0.0, "{io}");
    }
    read(2).await.expect("the other volume can be read");

    beneath.set_len(SIZE).expect("the file can be extended");
    read(1).await.expect("the namespace can be read again");
    let told = next(&mut events, EventType::VolumeRecovered).await;
    assert_eq!(told.object, "aioVolumes/v");
    eventually("the namespace is online", SOON, async || {
        (state(&on_device).await.as_deref() == Some("OPER_STATE_ONLINE")).then_some(())
    })
    .await;
    let (_, reason) = condition(&mut service, "aioVolumes/v").await;
    assert_eq!(reason, "");
    let labels = [("volume", volume.as_str()), ("io", "read")];
    let now = Scrape::of(&target).await;
    let now = now.value("opi_spdk_volume_io_errors_total", &labels);
    assert_eq!(now, reads, "no read has failed since");
    let log = target.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("its device fails I/O"));
    assert_eq!(lines.count(), 1, "{log}");
    target.stop();
}
