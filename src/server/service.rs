//! Handling of one request: caller, origin check, admission and deadline.

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
use crate::distinguished_name;
use crate::error::Error;
use crate::gateway;
use crate::resource::{GRPC_TIMEOUT, grpc_timeout};
use crate::telemetry::calls::Record;

/// Protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// HTTP/JSON, through the gateway.
    Http,
    /// SPDK's JSON-RPC over HTTP.
    Rpc,
}

/// The sender of a request, known from the connection. An extension of the request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Address of the client.
    pub address: Address,
    /// The client's certificate, signed by a configured authority.
    pub certificate: Option<Arc<CertificateDer<'static>>>,
    /// The subject of that certificate, as [`distinguished_name::text`] formats it.
    pub subject: Option<Arc<str>>,
}

impl Caller {
    /// The caller of a connection from `address`.
    pub fn new(address: Address, certificate: Option<CertificateDer<'static>>) -> Self {
        Self {
            address,
            subject: certificate.as_deref().and_then(subject).map(Arc::from),
            certificate: certificate.map(Arc::new),
        }
    }

    /// Adds the caller to a request's extensions, also in tonic's form.
    pub fn attach_to<B>(&self, request: &mut Request<B>) {
        let info = TcpConnectInfo {
            local_addr: None,
            remote_addr: self.address.network(),
        };
        request.extensions_mut().insert(info);
        request.extensions_mut().insert(self.clone());
    }
}

/// The services of a port.
#[derive(Clone)]
pub struct Service {
    protocol: Protocol,
    router: Router,
    guard: Arc<Guard>,
}

impl Service {
    /// Serves `router` to the requests that pass `guard`.
    pub fn new(protocol: Protocol, router: Router, guard: Guard) -> Self {
        Self {
            protocol,
            router,
            guard: Arc::new(guard),
        }
    }

    /// The protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Handles one request.
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
        connection.place.mark_known();
        if let Some(origin) = allowed {
            self.guard.admit(&mut answer, origin);
        }
        answer.map(|body| AnswerBody::new(body, Some(call)))
    }

    /// The timeout that a gRPC client gives. The gateway reads the header itself.
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

/// Whether the call has a stream of requests, as only reflection does.
fn is_stream(head: &Parts) -> bool {
    head.uri.path().starts_with("/grpc.reflection.")
}

/// Deadline for the request body to be complete.
fn age(head: &Parts) -> std::time::Duration {
    if is_stream(head) {
        REQUEST_STREAM_AGE
    } else {
        REQUEST_AGE
    }
}

/// Formats the subject.
fn subject(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    distinguished_name::text(certificate.subject())
}

fn never<T>(error: Infallible) -> T {
    match error {}
}
