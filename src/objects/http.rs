//! `GET /v1/events`: the events as server-sent events (WHATWG HTML, 9.2).
//!
//! ```text
//! id: 17                        the revision, with which a browser asks for what it has missed
//! data: {"revision": "17", ...}
//!
//! event: end                    why there are no more
//! data: {"code": 11, "message": "..."}
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Response, Uri};
use axum::routing::get;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use prost_reflect::ReflectMessage;
use serde_json::json;
use tonic::Status;

use super::Objects;
use super::watch::Events;
use crate::access::Permission;
use crate::error::Error;
use crate::events::Event;
use crate::gateway;

/// Names of the revision in the query.
const AFTER: [&str; 2] = ["afterRevision", "after_revision"];

/// Interval of keep-alive comments while there are no events.
const QUIET: Duration = Duration::from_secs(10);

/// Routes `GET /v1/events`.
pub fn router(objects: Arc<Objects>) -> Router {
    let refuse = async |method: Method| gateway::only_get(&method);
    Router::new()
        .route("/v1/events", get(events).fallback(refuse))
        .with_state(objects)
}

async fn events(
    State(objects): State<Arc<Objects>>,
    permission: Option<Extension<Permission>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let begun = after(&uri, &headers).and_then(|after| {
        let permission = permission.map(|Extension(permission)| permission);
        objects.events(after, permission)
    });
    let events = match begun {
        Ok(events) => events,
        Err(error) => return gateway::refuse(error.into(), None),
    };
    let body = match method {
        // No stream for a HEAD: it would never end, and its body would be discarded.
        Method::HEAD => Body::empty(),
        _ => Body::from_stream(server_sent(events).map(Ok::<_, Infallible>)),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The requested revision: from the query, or from the header (Last-Event-ID) of a browser that reconnects.
fn after(uri: &Uri, headers: &HeaderMap) -> Result<Option<i64>, Error> {
    let query = uri.query().unwrap_or_default();
    let mut given = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !AFTER.contains(&name.as_ref()) {
            let what = format!(
                "query parameter: there is none of this name, only {}",
                AFTER[0]
            );
            return Err(Error::invalid(name, what));
        }
        if given.replace(value.into_owned()).is_some() {
            return Err(Error::invalid(
                AFTER[1],
                "query parameter: it is given twice",
            ));
        }
    }
    let last = headers.get("last-event-id");
    if let Some(last) = last.filter(|last| !last.is_empty()) {
        let what = || Error::invalid("last-event-id", "it is no revision");
        given = Some(last.to_str().map_err(|_| what())?.to_owned());
    }
    let number = |text: String| {
        let what = format!("{text:?} is no revision: a whole number");
        text.parse().map_err(|_| Error::invalid(AFTER[1], what))
    };
    given.map(number).transpose()
}

fn server_sent(events: Events) -> Pin<Box<dyn futures_util::Stream<Item = String> + Send>> {
    // A first line is sent immediately, so that the client knows it is connected.
    let first = futures_util::stream::once(async { ":\n\n".to_owned() });
    let rest = unfold(events, |mut events| async {
        let text = match tokio::time::timeout(QUIET, events.next()).await {
            Err(_) => ":\n\n".to_owned(),
            Ok(Some(Ok(event))) => event_text(&event),
            Ok(Some(Err(status))) => end(&status),
            Ok(None) => return None,
        };
        Some((text, events))
    });
    Box::pin(first.chain(rest))
}

fn event_text(event: &Event) -> String {
    let json = gateway::json_of(&event.transcode_to_dynamic());
    match json {
        Ok(json) => format!("id: {}\ndata: {json}\n\n", event.revision),
        Err(error) => end(&error.into()),
    }
}

fn end(status: &Status) -> String {
    let json = json!({"code": status.code() as i32, "message": status.message()});
    format!("event: end\ndata: {json}\n\n")
}
