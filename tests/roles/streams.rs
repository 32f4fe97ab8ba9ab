//! Event streams under access control: who may begin one, and that a reload of the grants ends it.

use std::time::Duration;

use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::own::{Event, WatchEventsRequest};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};

use super::common::{Client, EventSource, SentEvent, eventually};
use super::{ADMIN, LIMIT, OPERATOR, VIEWER, grant, guarded, written};

/// Begins a stream of events with a token.
async fn watch(client: &Client, token: &str) -> Result<Streaming<Event>, Status> {
    let mut request = Request::new(WatchEventsRequest::default());
    let token = format!("Bearer {token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", token);
    let mut service = ObjectServiceClient::new(client.channel());
    Ok(service.watch_events(request).await?.into_inner())
}

/// Begins the stream of a method, and ends it; for the matrix of roles.
pub async fn begin(client: &Client, path: &str, token: &str) -> Result<(), Status> {
    assert!(path.ends_with("/WatchEvents"), "{path}: call it here");
    watch(client, token).await.map(drop)
}

async fn next(events: &mut Streaming<Event>) -> Result<Option<Event>, Status> {
    let next = timeout(LIMIT, events.message()).await;
    next.expect("the stream goes on or ends")
}

/// Receives the creation of a volume.
async fn receives(events: &mut Streaming<Event>, id: &str) {
    let event = next(events).await.expect("no error").expect("no end");
    assert_eq!(event.object, format!("nullVolumes/{id}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reload_ends_the_streams_of_grants_that_it_takes_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, client, _) = guarded(&dir).await;
    let admin = client.with_token(ADMIN);
    let make = async |id: &str| {
        let volume = json!({ "block_size": 512, "blocks_count": 64 });
        let request = json!({ "null_volume_id": id, "null_volume": volume });
        admin.ok("CreateNullVolume", request).await;
    };
    let begin = async |token| watch(&client, token).await.expect("it may watch");
    let (mut of_viewer, mut of_operator) = (begin(VIEWER).await, begin(OPERATOR).await);
    let mut of_admin = begin(ADMIN).await;
    let header = format!("Authorization: Bearer {VIEWER}\r\n");
    let mut page = EventSource::open(target.http, "", &header);

    // A reload that takes nothing away ends no stream.
    target.signal(Signal::HUP);
    let reloads = || target.log().matches("configuration reloaded").count();
    eventually("the reload", LIMIT, async || (reloads() == 1).then_some(())).await;
    make("a").await;
    for events in [&mut of_viewer, &mut of_operator, &mut of_admin] {
        receives(events, "a").await;
    }
    let SentEvent {
        event: name,
        data: event,
        ..
    } = page.next();
    assert_eq!(
        (&*name, &event["object"]),
        ("", &json!("nullVolumes/a")),
        "{event}"
    );

    // The viewer's grant is gone, and the operator's is for a tenant's objects alone.
    let admins = grant(dir.path(), "admin", ADMIN, "");
    let tenants = grant(dir.path(), "operator", OPERATOR, "tenant-");
    written(dir.path(), "access.toml", &(admins + &tenants));
    target.signal(Signal::HUP);
    eventually("the second reload", LIMIT, async || {
        (reloads() == 2).then_some(())
    })
    .await;
    make("b").await;
    for (events, code) in [
        (&mut of_viewer, Code::Unauthenticated),
        (&mut of_operator, Code::PermissionDenied),
    ] {
        let end = next(events).await.expect_err("the grant is gone");
        assert_eq!(end.code(), code, "{end}");
    }
    let SentEvent {
        event: name,
        data: end,
        ..
    } = page.next();
    let code = Code::Unauthenticated as i32;
    assert_eq!((&*name, &end["code"]), ("end", &json!(code)), "{end}");
    receives(&mut of_admin, "b").await;
    let another = timeout(Duration::from_millis(100), of_admin.message()).await;
    assert!(another.is_err(), "{another:?}");
    target.stop();
}
