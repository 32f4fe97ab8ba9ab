//! `POST /` with basic authentication, forwarded to SPDK's JSON-RPC socket, as SPDK's own HTTP proxy
//! does it: one request object in, SPDK's answer out (200, also when it is an error), 204 for a
//! notification.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Request, Response, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::{Credentials, socket};
use crate::gateway::Limits;

/// Connections to SPDK at a time. It takes 64; the rest is for those who connect to the socket.
const CALLS: usize = 16;

/// Bytes of a request: what SPDK's server can hold.
const REQUEST_MAX: usize = 32 << 10;

/// Error codes of JSON-RPC 2.0.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const INTERNAL_ERROR: i32 = -32603;

/// What the proxy takes.
pub fn limits() -> Limits {
    Limits {
        body: REQUEST_MAX,
        headers: 16 << 10,
        request: Duration::from_secs(60),
        connections: 32,
    }
}

struct Proxy {
    credentials: Credentials,
    socket: PathBuf,
    limits: Limits,
    places: Semaphore,
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
}

/// A router that forwards requests with these credentials to SPDK's `socket`.
pub fn router(credentials: Credentials, socket: PathBuf, limits: Limits) -> Router {
    let proxy = Proxy {
        credentials,
        socket,
        limits,
        places: Semaphore::new(CALLS),
    };
    Router::new()
        .route("/", post(handle))
        .with_state(Arc::new(proxy))
}

async fn handle(State(proxy): State<Arc<Proxy>>, request: Request<Body>) -> Response<Body> {
    let limit = proxy.limits.request;
    let answer = tokio::time::timeout(limit, proxy.answer(request)).await;
    let answer = answer.unwrap_or_else(|_| {
        let message = format!("no answer within {limit:?}");
        Err(Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            INTERNAL_ERROR,
            message,
        ))
    });
    respond(answer)
}

impl Proxy {
    async fn answer(&self, request: Request<Body>) -> Result<Vec<u8>, Refusal> {
        let (head, body) = request.into_parts();
        if !self.credentials.are_in(&head.headers) {
            let message = "the user and the password are needed";
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                INVALID_REQUEST,
                message,
            ));
        }
        let body = self.read(body).await?;
        let request: Value = serde_json::from_slice(&body).map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, PARSE_ERROR, error.to_string())
        })?;
        let Value::Object(request) = request else {
            let message = "a request is one JSON object";
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                INVALID_REQUEST,
                message,
            ));
        };
        self.forward(&request, &body).await
    }

    async fn read(&self, body: Body) -> Result<Bytes, Refusal> {
        let limit = self.limits.body;
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                let message = format!("a request has {limit} bytes at most");
                Err(Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    INVALID_REQUEST,
                    message,
                ))
            }
            Err(error) => {
                let message = format!("the body cannot be read: {error}");
                Err(Refusal::new(
                    StatusCode::BAD_REQUEST,
                    INVALID_REQUEST,
                    message,
                ))
            }
        }
    }

    async fn forward(&self, request: &Map<String, Value>, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        // Never closed, so a place always comes.
        let _place = self.places.acquire().await;
        let answered = request.contains_key("id");
        let method = request
            .get("method")
            .and_then(Value::as_str)
            .unwrap_or_default();
        tracing::info!(method, "SPDK command over HTTP");
        socket::call(&self.socket, body, answered)
            .await
            .map_err(|error| {
                let message = format!("SPDK's JSON-RPC server: {error}");
                Refusal::new(StatusCode::BAD_GATEWAY, INTERNAL_ERROR, message)
            })
    }
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
