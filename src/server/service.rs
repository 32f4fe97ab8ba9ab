//! One request: who sent it, whether a page of another site did, whether there is room for it, and its
//! time limit.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request, Response};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::Status;
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt;

use super::calls::{AnswerBody, Call, Connection, RequestBody};
use super::gathered::gather;
use super::limits::{REQUEST_AGE, REQUEST_STREAM_AGE};
use super::listener::Address;
use super::origin::{Guard, Refusal};
use crate::error::Error;
use crate::gateway;
use crate::resource::{GRPC_TIMEOUT, grpc_timeout};
use crate::telemetry::calls::Record;

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// HTTP/JSON, the API.
    Http,
    /// SPDK's JSON-RPC over HTTP.
    Rpc,
}

/// Who sent a request, as far as the connection tells: an extension of the request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The other end.
    pub address: Address,
    /// The client's own certificate, which one of the authorities signed.
    pub certificate: Option<Arc<CertificateDer<'static>>>,
    /// The subject of that certificate.
    pub subject: Option<Arc<str>>,
}

impl Caller {
    /// Of a connection from `address`.
    pub fn new(address: Address, certificate: Option<CertificateDer<'static>>) -> Self {
        Self {
            address,
            subject: certificate.as_deref().and_then(subject).map(Arc::from),
            certificate: certificate.map(Arc::new),
        }
    }

    /// Makes services see who calls, also by tonic's own means.
    pub fn introduce<B>(&self, request: &mut Request<B>) {
        let info = TcpConnectInfo {
            local_addr: None,
            remote_addr: self.address.network(),
        };
        request.extensions_mut().insert(info);
        request.extensions_mut().insert(self.clone());
    }
}

/// What a port serves.
#[derive(Clone)]
pub struct Service {
    protocol: Protocol,
    router: Router,
    guard: Arc<Guard>,
}

impl Service {
    /// `router`, to those whom `guard` lets through.
    pub fn new(protocol: Protocol, router: Router, guard: Guard) -> Self {
        Self {
            protocol,
            router,
            guard: Arc::new(guard),
        }
    }

    /// What it speaks.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Answers one request.
    pub async fn answer(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        let (head, body) = request.into_parts();
        let allowed = match self
            .guard
            .check(self.protocol, &head, !body.is_end_stream())
        {
            Ok(allowed) => allowed,
            Err(refusal) => return self.refuse(refusal, &head, body).await,
        };
        let record = head.extensions.get::<Arc<Record>>().cloned();
        let call = match Call::begin(connection) {
            Ok(call) => call,
            Err(error) => {
                if let Some(record) = &record {
                    record.set_incomplete(true);
                }
                return self.refuse(error.into(), &head, body).await;
            }
        };
        poll_fn(|cx| connection.held.poll_room(cx)).await;
        let body = RequestBody::new(body, &call, age(&head), record);
        let limit = self.limit(&head.headers);
        let whole = self.protocol == Protocol::Grpc && !is_stream(&head);
        let answer = async {
            let body = if whole {
                Body::new(gather(body).await)
            } else {
                Body::new(body)
            };
            let request = Request::from_parts(head, body);
            self.router.clone().oneshot(request).await
        };
        let answer = match limit {
            None => answer.await,
            Some(limit) => match timeout(limit, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    let error = Error::DeadlineExceeded(format!("no answer within {limit:?}"));
                    Ok(Status::from(error).into_http())
                }
            },
        };
        let mut answer = answer.unwrap_or_else(never);
        connection.place.is_known_now();
        if let Some(origin) = allowed {
            self.guard.admit(&mut answer, origin);
        }
        answer.map(|body| AnswerBody::new(body, Some(call)))
    }

    /// How long a client of gRPC waits, if it says so. The gateway looks for itself.
    fn limit(&self, headers: &HeaderMap) -> Option<std::time::Duration> {
        if self.protocol != Protocol::Grpc {
            return None;
        }
        grpc_timeout(headers.get(GRPC_TIMEOUT)?.to_str().ok()?)
    }

    async fn refuse(&self, refusal: Refusal, head: &Parts, body: Incoming) -> Response<AnswerBody> {
        let answer = match (self.protocol, refusal) {
            (_, Refusal::Answer(answer)) => *answer,
            (Protocol::Grpc, Refusal::Error { status, http: None }) => status.into_http(),
            (_, Refusal::Error { status, http }) => {
                gateway::drain(head.version, Body::new(body)).await;
                gateway::refuse(status, http)
            }
        };
        answer.map(|body| AnswerBody::new(body, None))
    }
}

/// Whether the call's requests are a stream: reflection's alone.
fn is_stream(head: &Parts) -> bool {
    head.uri.path().starts_with("/grpc.reflection.")
}

/// How long the request may take to arrive.
fn age(head: &Parts) -> std::time::Duration {
    if is_stream(head) {
        REQUEST_STREAM_AGE
    } else {
        REQUEST_AGE
    }
}

/// As RFC 4514 writes names, nearly.
fn subject(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.subject().to_string())
}

fn never<T>(error: Infallible) -> T {
    match error {}
}
