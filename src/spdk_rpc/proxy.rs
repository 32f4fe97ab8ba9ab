//! Forwards `POST /` with basic authentication to SPDK's JSON-RPC socket, like SPDK's own HTTP proxy: one request
//! object in, SPDK's answer out (200 also for an error), 204 for a notification.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::attempts::Attempts;
use super::{Credentials, socket};
use crate::gateway::{drain, is_longer};
use crate::server::Caller;
use crate::telemetry::Record;

/// Concurrent connections to SPDK. It accepts 64; the others are left to direct users of the socket.
const CALLS: usize = 16;

/// Timeout for a free connection.
const SLOT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of a request, in bytes: the buffer of SPDK's server.
const REQUEST_MAX: usize = 32 << 10;

/// Limits of SPDK's server for a request (lib/jsonrpc, lib/json): values, and levels of nesting.
const VALUES: usize = 1024;
const LEVELS: usize = 64;

/// Error codes of JSON-RPC 2.0.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const INTERNAL_ERROR: i32 = -32603;

/// Timeout from a request's headers to its answer. Some of SPDK's commands are slow, and some never answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

struct Proxy {
    credentials: Credentials,
    socket: PathBuf,
    places: Semaphore,
    attempts: Attempts,
}

/// Why a request was not answered by SPDK.
struct Refusal {
    http: StatusCode,
    code: i32,
    message: String,
}

impl Refusal {
    fn new(http: StatusCode, code: i32, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            http,
            code,
            message,
        }
    }

    fn bad_request(code: i32, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }
}

/// Builds a router that forwards requests with these credentials to SPDK's `socket`.
pub fn router(credentials: Credentials, socket: PathBuf) -> Router {
    let proxy = Proxy {
        credentials,
        socket,
        places: Semaphore::new(CALLS),
        attempts: Attempts::default(),
    };
    Router::new()
        .route("/", post(handle))
        .with_state(Arc::new(proxy))
}

async fn handle(State(proxy): State<Arc<Proxy>>, request: Request<Body>) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let answer = tokio::time::timeout(ANSWER_LIMIT, proxy.answer(&head, &mut body)).await;
    let answer = answer.unwrap_or_else(|_| {
        let message = format!("no answer within {ANSWER_LIMIT:?}");
        let http = StatusCode::GATEWAY_TIMEOUT;
        Err(Refusal::new(http, INTERNAL_ERROR, message))
    });
    drain(head.version, body).await;
    respond(answer)
}

impl Proxy {
    async fn answer(&self, head: &Parts, body: &mut Body) -> Result<Vec<u8>, Refusal> {
        self.authenticate(head).await?;
        let body = self.read(body).await?;
        let request: Value = serde_json::from_slice(&body)
            .map_err(|error| Refusal::bad_request(PARSE_ERROR, error.to_string()))?;
        let Value::Object(request) = request else {
            let message = "a request is one JSON object";
            return Err(Refusal::bad_request(INVALID_REQUEST, message));
        };
        let (values, levels) = size_of(request.values());
        // SPDK would close the connection without an answer.
        if values > VALUES || levels > LEVELS {
            let message = format!(
                "SPDK takes requests of {VALUES} values and {LEVELS} levels at most, as it counts them; \
                 this one has {values} and {levels}"
            );
            return Err(Refusal::bad_request(INVALID_REQUEST, message));
        }
        self.forward(&request, &body, head.extensions.get()).await
    }

    /// Checks the password. Wrong passwords are delayed and logged.
    async fn authenticate(&self, head: &Parts) -> Result<(), Refusal> {
        let refuse = |http, message: &str| Err(Refusal::new(http, INVALID_REQUEST, message));
        let needed = "the user and the password are needed";
        if !head.headers.contains_key(AUTHORIZATION) {
            return refuse(StatusCode::UNAUTHORIZED, needed);
        }
        let caller = head.extensions.get::<Caller>();
        let peer = caller.and_then(|caller| caller.address.network());
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        if self.attempts.are_exhausted(peer) {
            let message = "too many wrong passwords: this one was not looked at, try again later";
            return refuse(StatusCode::TOO_MANY_REQUESTS, message);
        }
        if self.credentials.are_in(&head.headers) {
            return Ok(());
        }
        self.attempts.fail(peer).await;
        refuse(StatusCode::UNAUTHORIZED, needed)
    }

    async fn read(&self, body: &mut Body) -> Result<Bytes, Refusal> {
        let too_long = || {
            let message = format!("a request has {REQUEST_MAX} bytes at most");
            let http = StatusCode::PAYLOAD_TOO_LARGE;
            Err(Refusal::new(http, INVALID_REQUEST, message))
        };
        if is_longer(body, REQUEST_MAX) {
            return too_long();
        }
        match Limited::new(body, REQUEST_MAX).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => too_long(),
            Err(error) => {
                let message = format!("the body cannot be read: {error}");
                Err(Refusal::bad_request(INVALID_REQUEST, message))
            }
        }
    }

    async fn forward(
        &self,
        request: &Map<String, Value>,
        body: &[u8],
        record: Option<&Arc<Record>>,
    ) -> Result<Vec<u8>, Refusal> {
        // The semaphore is never closed, so an error is always the timeout.
        let place = tokio::time::timeout(SLOT_TIMEOUT, self.places.acquire()).await;
        let Ok(_place) = place else {
            let message =
                format!("{CALLS} calls are under way, and none has ended in {SLOT_TIMEOUT:?}");
            let http = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Refusal::new(http, INTERNAL_ERROR, message));
        };
        // SPDK treats an ID of null as absent, like JSON-RPC 1.0.
        let answered = request.get("id").is_some_and(|id| !id.is_null());
        let method = request
            .get("method")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if let Some(record) = record {
            record.set_command(method);
        }
        socket::call(&self.socket, body, answered)
            .await
            .map_err(|error| {
                let message = format!("SPDK's JSON-RPC server: {error}");
                Refusal::new(StatusCode::BAD_GATEWAY, INTERNAL_ERROR, message)
            })
    }
}

/// Values and nesting levels of a JSON object with these members, as counted by SPDK (spdk/json.h): names are values,
/// and so are the start and the end of each object or array.
fn size_of<'a>(members: impl Iterator<Item = &'a Value>) -> (usize, usize) {
    let inside = members.map(|value| match value {
        Value::Object(object) => size_of(object.values()),
        Value::Array(array) => {
            let (values, levels) = size_of(array.iter());
            (values - array.len(), levels)
        }
        _ => (1, 0),
    });
    inside.fold((2, 1), |(values, levels), (more, deeper)| {
        (values + 1 + more, levels.max(deeper + 1))
    })
}

fn respond(answer: Result<Vec<u8>, Refusal>) -> Response<Body> {
    let (status, body) = match answer {
        Ok(body) if body.is_empty() => (StatusCode::NO_CONTENT, body),
        Ok(body) => (StatusCode::OK, body),
        Err(refusal) => {
            let error = json!({ "code": refusal.code, "message": refusal.message });
            let body = json!({ "jsonrpc": "2.0", "id": null, "error": error });
            (refusal.http, body.to_string().into_bytes())
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::UNAUTHORIZED {
        let realm = HeaderValue::from_static("Basic realm=\"SPDK JSON-RPC\"");
        headers.insert(WWW_AUTHENTICATE, realm);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    /// An SPDK server that accepts a command and never answers.
    #[tokio::test(start_paused = true)]
    async fn a_command_that_is_never_answered_ends_at_the_limit_and_gives_its_place_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let (socket, password) = (dir.path().join("rpc.sock"), dir.path().join("password"));
        let _silent = tokio::net::UnixListener::bind(&socket).expect("a socket");
        std::fs::write(&password, "right\n").expect("a file");
        let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&password, owner).expect("it is ours");
        let credentials = Credentials::read("admin", &password).expect("a password");
        let router = router(credentials, socket);
        let call = || {
            let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "silent" }).to_string();
            let request = Request::post("/").header(AUTHORIZATION, "Basic YWRtaW46cmlnaHQ=");
            let request = request.body(Body::from(body)).expect("a request");
            tokio::spawn(router.clone().oneshot(request))
        };
        for _ in 0..2 {
            let begun = tokio::time::Instant::now();
            let calls: Vec<_> = (0..CALLS).map(|_| call()).collect();
            for call in calls {
                let answer = call.await.expect("no panic").expect("an answer");
                assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
            }
            let took = begun.elapsed();
            assert!(
                took >= ANSWER_LIMIT && took < ANSWER_LIMIT + SLOT_TIMEOUT,
                "{took:?}"
            );
        }
    }

    #[test]
    fn values_are_counted_as_spdk_does() {
        let size = |json: &str| {
            let object: Map<String, Value> = serde_json::from_str(json).expect("an object");
            size_of(object.values())
        };
        assert_eq!(size("{}"), (2, 1));
        assert_eq!(size(r#"{"a": 1, "b": "x"}"#), (6, 1));
        // Two for each pair of brackets, three names, four others.
        assert_eq!(size(r#"{"a": [1, 2, 3], "b": {"c": null}}"#), (13, 2));
        assert_eq!(size(r#"{"a": [[[]]]}"#), (9, 4));
    }
}
