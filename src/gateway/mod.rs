//! HTTP/JSON over the gRPC services, from the google.api.http options of their descriptors. No route is written by
//! hand: an option added in `proto/` is served here.
//!
//! ```text
//! HTTP request ─ route ─► request message ─ call ─► answer ─► JSON
//!                 │            │              │
//!                404, 405     400        HTTP status of the gRPC code
//! ```
//!
//! Calls stay in the process and pass the same layers as gRPC clients' calls. The conventions are grpc-gateway's; `GET
//! /openapi.json` describes the API.

mod call;
mod choices;
mod decimal;
mod drain;
mod explain;
mod given;
mod mask;
mod merged_lists;
mod openapi;
mod query;
mod request;
mod response;
mod route;
mod schema;
mod template;
mod unique_keys;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor};
use serde_json::Value as Json;
use tonic::{Code, Status};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt};

use crate::error::Error;
use crate::resource::{GRPC_TIMEOUT, grpc_timeout};
use crate::telemetry::Record;
use call::Services;
pub(crate) use call::{frame, unframe};
use response::Failure;
use route::{Body as InBody, Found, Table};

pub use crate::server::Limits;
pub use drain::drain;
pub(crate) use request::set as set_field;
pub(crate) use response::json as json_of;
pub(crate) use route::resolve as field_path;

/// State shared by all requests.
struct Gateway {
    table: Table,
    services: Services,
    limits: Limits,
}

/// Builds a router that serves every RPC of `pool` with an HTTP option by calling `services`: tonic's `Routes`, with
/// or without layers.
///
/// # Errors
/// The RPC with an option that the gateway does not support.
pub fn router<S>(pool: &DescriptorPool, services: S, limits: Limits) -> Result<Router, String>
where
    S: Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>>,
    S: Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    let table = Table::new(pool)?;
    let description = Bytes::from(openapi::describe(pool, &table).to_string());
    let gateway = Arc::new(Gateway {
        table,
        services: BoxCloneSyncService::new(services.map_err(Into::into)),
        limits,
    });
    let describe = || async { ([("content-type", "application/json")], description) };
    let refuse = async |method: Method| only_get(&method);
    Ok(Router::new()
        .route("/openapi.json", get(describe).fallback(refuse))
        .fallback(handle)
        .with_state(gateway))
}

async fn handle(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let answer = match deadline(&head.headers) {
        Ok(asked) => gateway.answer_within(asked, &head, &mut body).await,
        Err(error) => Err(error.into()),
    };
    drain(head.version, body).await;
    response::respond(answer)
}

/// The client's timeout, if it gives one. tonic's server does the same for gRPC clients.
fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    match value.to_str().ok().and_then(grpc_timeout) {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Error::invalid(
            GRPC_TIMEOUT,
            format!("{value:?} is none: 1 to 8 digits and a unit, one of H M S m u n"),
        )),
    }
}

impl Gateway {
    async fn answer_within(
        &self,
        asked: Option<Duration>,
        head: &Parts,
        body: &mut Body,
    ) -> Result<Json, Failure> {
        let limit = self.limits.request;
        let limit = asked.map_or(limit, |asked| asked.min(limit));
        match tokio::time::timeout(limit, self.answer(head, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::DeadlineExceeded(format!("no answer within {limit:?}")).into()),
        }
    }

    async fn answer(&self, head: &Parts, body: &mut Body) -> Result<Json, Failure> {
        // A HEAD is handled as a GET; the HTTP server omits the body.
        let method = match head.method {
            Method::HEAD => &Method::GET,
            ref other => other,
        };
        let rules = match self.table.find(method, head.uri.path()) {
            Found::Route(rules) => rules,
            Found::OtherMethods(methods) => {
                return Err(Failure::method_not_allowed(&head.method, &methods));
            }
            Found::Nothing => return Err(Error::not_found(head.uri.path()).into()),
        };
        if let (Some(record), [(rule, _), ..]) =
            (head.extensions.get::<Arc<Record>>(), rules.as_slice())
        {
            record.routed_to(rule.grpc_path.path());
        }
        let query = query(head);
        let [(rule, captures)] = rules.as_slice() else {
            return merged_lists::list(&self.services, &rules, head, &query).await;
        };
        let body = match rule.body {
            InBody::None => Bytes::new(),
            _ => self.read(body).await?,
        };
        let message = request::build(rule, captures, &query, &body)?;
        let answer = call::unary(self.services.clone(), rule, head, &message).await?;
        Ok(response::json(&answer)?)
    }

    async fn read(&self, body: &mut Body) -> Result<Bytes, Failure> {
        let limit = self.limits.body;
        // Checked before anything is read: a client that asks first (100-continue) is refused at once.
        if is_longer(body, limit) {
            return Err(Failure::body_too_large(limit));
        }
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Failure::body_too_large(limit)),
            Err(error) => Err(unreadable(error)),
        }
    }
}

/// Whether a body is longer than `limit` by its announced length.
pub(crate) fn is_longer(body: &Body, limit: usize) -> bool {
    let least = usize::try_from(body.size_hint().lower());
    least.map_or(true, |least| least > limit)
}

/// The server's own reasons (deadline, memory limit) arrive as statuses; any other error is the client's fault.
fn unreadable(error: BoxError) -> Failure {
    let text = error.to_string();
    let status = Status::from_error(error);
    match status.code() {
        Code::DeadlineExceeded | Code::ResourceExhausted => status.into(),
        _ => Error::invalid("body", format!("it cannot be read: {text}")).into(),
    }
}

/// The response to a method other than GET on a GET-only path.
pub(crate) fn only_get(method: &Method) -> Response<Body> {
    response::respond(Err(Failure::method_not_allowed(method, &[Method::GET])))
}

/// The response to a request that the server refuses; `http` overrides the HTTP status of the gRPC code.
pub(crate) fn refuse(status: Status, http: Option<StatusCode>) -> Response<Body> {
    let mut response = response::respond(Err(status.into()));
    if let Some(http) = http {
        *response.status_mut() = http;
    }
    response
}

/// The fault of a field's value, if any.
pub(crate) fn fault_of(field: &FieldDescriptor, json: &Json) -> Option<String> {
    explain::of_field(field, json).map(|fault| fault.what)
}

/// The first value in `json` that does not fit `message`: its path, and what is wrong.
pub(crate) fn fault_in(message: &MessageDescriptor, json: &Json) -> Option<(String, String)> {
    explain::of_message(message, json).map(|fault| (fault.path, fault.what))
}

/// The fields of `message` named by `json`, as the mask of a PATCH without one.
pub(crate) fn paths_in(message: &MessageDescriptor, json: &Json) -> Vec<String> {
    mask::named(message, json)
}

/// The decoded query parameters, in order.
fn query(head: &Parts) -> Vec<(String, String)> {
    let text = head.uri.query().unwrap_or_default();
    form_urlencoded::parse(text.as_bytes())
        .into_owned()
        .collect()
}
