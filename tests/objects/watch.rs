//! Events over gRPC, and misbehaving watchers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::own::{Condition, Event, EventType};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};

use super::{Service, make, next};
use crate::common::{Client, Options, Target, check_details, eventually, unique};

async fn resize(client: &Client, id: &str, blocks: u32) {
    let request = json!({
        "null_volume": {"name": format!("volumes/{id}"), "blocks_count": blocks},
        "update_mask": "blocksCount",
    });
    client.ok("UpdateNullVolume", request).await;
}

async fn delete(client: &Client, id: &str) {
    let name = format!("volumes/{id}");
    client.ok("DeleteNullVolume", json!({ "name": name })).await;
}

#[tokio::test]
async fn events_are_ordered_and_bad_watchers_block_no_one() {
    let target = Target::start().await;
    let client = target.client().await;
    let service = Service::of(&client);
    each_change_is_one_event(&client, &service).await;
    events_of_concurrent_changes_are_ordered(&client, &service).await;
    an_invalid_revision_is_rejected(&service).await;
    watches_are_limited(&target, &client).await;
    a_watcher_that_does_not_read_is_disconnected(&target, &client).await;

    // A new process has no events from before its start.
    let (_, before) = service.list(0).await;
    let mut watching = service.watch(None).await.expect("a watch");
    let mut target = target;
    target.stop_with(rustix::process::Signal::TERM);
    let ended = watching
        .message()
        .await
        .expect_err("the server has stopped");
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    let target = Target::start_with(Options::default().after(&target)).await;
    let service = Service::of(&target.client().await);
    let (_, now) = service.list(0).await;
    assert!(now >= before, "revisions never go back: {before}, {now}");
    let error = service
        .watch(Some(before - 1))
        .await
        .expect_err("the revision is no longer available");
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    assert!(error.message().contains("list again"), "{error}");
    check_details(&error);
    target.stop();
}

async fn each_change_is_one_event(client: &Client, service: &Service) {
    let (_, revision) = service.list(0).await;
    let mut events = service.watch(Some(revision)).await.expect("a watch");
    let id = unique("told");
    let key = format!("nullVolumes/{id}");
    make(client, &id).await;
    let made = next(&mut events).await;
    assert_eq!((made.r#type(), &made.object), (EventType::Created, &key));
    assert!(made.revision > revision && made.time.is_some(), "{made:?}");
    resize(client, &id, 128).await;
    let updated = next(&mut events).await;
    assert_eq!(
        (updated.r#type(), &updated.object),
        (EventType::Updated, &key)
    );
    let resized = next(&mut events).await;
    let size = (resized.r#type(), resized.size_bytes);
    assert_eq!(size, (EventType::VolumeResized, 128 * 512));
    assert_eq!(resized.revision, updated.revision);
    delete(client, &id).await;
    let going = next(&mut events).await;
    let told = (going.r#type(), going.condition());
    assert_eq!(told, (EventType::ConditionChanged, Condition::Deleting));
    let gone = next(&mut events).await;
    assert_eq!((gone.r#type(), &gone.object), (EventType::Deleted, &key));

    // Watching from a revision in between returns the rest.
    let mut rest = service
        .watch(Some(updated.revision))
        .await
        .expect("a watch");
    assert_eq!(next(&mut rest).await, resized);
    assert_eq!(next(&mut rest).await, going);
    assert_eq!(next(&mut rest).await, gone);
}

async fn events_of_concurrent_changes_are_ordered(client: &Client, service: &Service) {
    const NUMBER: usize = 60;
    let (_, revision) = service.list(0).await;
    let mut events = service.watch(Some(revision)).await.expect("a watch");
    let ids: Vec<String> = (0..NUMBER).map(|_| unique("many")).collect();
    let mut making = JoinSet::new();
    for id in ids.clone() {
        let client = client.clone();
        making.spawn(async move { make(&client, &id).await });
    }
    let (mut last, mut told) = (revision, BTreeSet::new());
    while told.len() < NUMBER {
        let event = next(&mut events).await;
        assert!(event.revision > last, "{event:?} after {last}");
        last = event.revision;
        // The object can be read by the time its event arrives.
        let id = event.object.trim_start_matches("nullVolumes/").to_owned();
        let name = format!("volumes/{id}");
        client.ok("GetNullVolume", json!({ "name": name })).await;
        told.insert(id);
    }
    making.join_all().await;
    for id in &ids {
        assert!(told.contains(id), "{id} was not told of");
        delete(client, id).await;
    }
}

async fn an_invalid_revision_is_rejected(service: &Service) {
    let (_, revision) = service.list(0).await;
    for future in [revision + 1, i64::MAX] {
        let error = service
            .watch(Some(future))
            .await
            .expect_err("the revision does not exist yet");
        assert_eq!(error.code(), Code::OutOfRange, "{error}");
        let what = format!("revision {future} is not given yet");
        assert!(error.message().contains(&what), "{error}");
    }
    for none in [-1, i64::MIN] {
        let error = service
            .watch(Some(none))
            .await
            .expect_err("the revision is invalid");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        check_details(&error);
    }
}

async fn watches_are_limited(target: &Target, client: &Client) {
    const MOST: usize = 256;
    let mut watching = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(target.client().await);
    }
    // A connection is limited to 100 streams.
    for number in 0..MOST {
        let service = Service::of(&connections[number % 3]);
        watching.push(service.watch(None).await.expect("the limit is not reached"));
    }
    let error = Service::of(client)
        .watch(None)
        .await
        .expect_err("the limit is reached");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let id = unique("seen");
    make(client, &id).await;
    for events in &mut watching {
        assert_eq!(next(events).await.object, format!("nullVolumes/{id}"));
    }
    delete(client, &id).await;
    drop(watching);
    drop(connections);
    let service = Service::of(client);
    eventually("the closed watches are released", super::SOON, async || {
        service.watch(None).await.ok()
    })
    .await;
}

/// Volumes of [`many_events`], and how often each is resized.
const VOLUMES: usize = 32;
const ROUNDS: u32 = 90;

/// Changes volumes until the server has told of more events than it keeps, which `good` reads. Returns the longest time
/// that a change took.
pub async fn many_events(client: &Client, good: &mut Streaming<Event>) -> Duration {
    let mut changing = JoinSet::new();
    for _ in 0..VOLUMES {
        let client = client.clone();
        changing.spawn(async move {
            let id = unique("busy");
            make(&client, &id).await;
            let mut longest = Duration::ZERO;
            for round in 0..ROUNDS {
                let begun = Instant::now();
                resize(&client, &id, 128 + round).await;
                longest = longest.max(begun.elapsed());
            }
            delete(&client, &id).await;
            longest
        });
    }
    let mut gone = 0;
    while gone < VOLUMES {
        let event = next(good).await;
        gone += usize::from(event.r#type() == EventType::Deleted);
    }
    let all = changing.join_all().await;
    all.into_iter().max().unwrap_or_default()
}

/// A watcher with a flow control window of a few events that reads none must not block others.
async fn a_watcher_that_does_not_read_is_disconnected(target: &Target, client: &Client) {
    let endpoint = Endpoint::from_shared(format!("http://{}", target.grpc)).expect("an address");
    let endpoint = endpoint
        .initial_stream_window_size(1024)
        .initial_connection_window_size(65_535);
    let channel = endpoint
        .connect()
        .await
        .expect("the server accepts connections");
    let slow = Service(ObjectServiceClient::new(channel));
    let mut slow = slow.watch(None).await.expect("a watch");
    let service = Service::of(client);
    let (_, revision) = service.list(0).await;
    let mut good = service.watch(Some(revision)).await.expect("a watch");

    // A reading watcher gets every event although another does not read.
    many_events(client, &mut good).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match slow.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error"),
                Err(status) => return status,
            }
        }
    });
    let status = ended.await.expect("the watch is closed");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains("read too slowly"), "{status}");
}
