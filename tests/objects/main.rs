//! `opi_spdk.v1.ObjectService`: objects of all kinds, their events, and hosts.

#[path = "../common/mod.rs"]
mod common;

mod conditions;
mod hosts;
mod http;
mod list;
mod shell;
mod watch;

use std::time::Duration;

use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::own::{Event, ListObjectsRequest, Object, WatchEventsRequest};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use common::Client;

/// Timeout of an event on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// The client of the service.
#[derive(Clone)]
struct Service(ObjectServiceClient<Channel>);

impl Service {
    fn of(client: &Client) -> Self {
        Self(ObjectServiceClient::new(client.channel()))
    }

    /// Lists all objects in pages of this size; returns the revision of the first page too.
    async fn list(&self, page_size: i32) -> (Vec<Object>, i64) {
        let mut client = self.0.clone();
        let mut request = ListObjectsRequest {
            page_size,
            page_token: String::new(),
        };
        let (mut found, mut revision) = (Vec::new(), None);
        loop {
            let page = client.list_objects(request.clone()).await;
            let page = page.expect("a page").into_inner();
            revision.get_or_insert(page.revision);
            found.extend(page.objects);
            if page.next_page_token.is_empty() {
                return (found, revision.expect("the first page was read"));
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn watch(&self, after_revision: Option<i64>) -> Result<Streaming<Event>, Status> {
        let mut client = self.0.clone();
        let events = client.watch_events(WatchEventsRequest { after_revision });
        Ok(events.await?.into_inner())
    }
}

/// Creates a null volume.
async fn make(client: &Client, id: &str) {
    let request = json!({
        "null_volume_id": id,
        "null_volume": {"block_size": 512, "blocks_count": 64},
    });
    client.ok("CreateNullVolume", request).await;
}

/// Waits for the next event.
async fn next(events: &mut Streaming<Event>) -> Event {
    let event = tokio::time::timeout(SOON, events.message()).await;
    let event = event.unwrap_or_else(|_| panic!("no event within {SOON:?}"));
    event.expect("no error").expect("no end")
}
