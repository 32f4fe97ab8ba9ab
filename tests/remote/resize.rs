//! A namespace that its peer resizes.

use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::own::{EventType, WatchEventsRequest};
use serde_json::json;

use super::Lab;
use crate::common::{Resource, namespace, nqn_of, subsystem, tcp_controller};

/// Size of a block, bytes.
const BLOCK: i64 = 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_grows_at_its_peer_is_an_event_with_its_size() {
    let lab = Lab::new().await;
    let elsewhere = lab.peer.client().await;
    let volumes = Resource::new(&elsewhere, "NullVolume");
    let object = |blocks: i64| json!({ "block_size": BLOCK, "blocks_count": blocks });
    volumes.created("", "grows", object(2048)).await;
    let shown = subsystem(&elsewhere, "grows", json!({})).await;
    namespace(&elsewhere, &shown, "volumes/grows", json!({})).await;
    let (_, port) = tcp_controller(&elsewhere, &shown).await;
    let controller = lab.controller("grows", "DISABLE").await;
    lab.path(&controller, "p", port, &nqn_of("grows")).await;
    let (_host, _) = lab.export("growsn1").await;

    let mut service = ObjectServiceClient::new(lab.client.channel());
    let events = service.watch_events(WatchEventsRequest::default()).await;
    let mut events = events.expect("a watch").into_inner();
    volumes
        .updated("volumes/grows", object(4096), Some(&["blocks_count"]))
        .await;
    let event = events.message().await.expect("it goes on").expect("no end");
    assert_eq!(event.r#type(), EventType::VolumeResized, "{event:?}");
    assert_eq!(
        event.object,
        format!("{controller}/nvmeRemoteNamespaces/growsn1")
    );
    assert_eq!(event.size_bytes, 4096 * BLOCK);
    lab.stop();
}
