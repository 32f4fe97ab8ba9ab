//! The authorization layer over the services. Calls of gRPC clients and of the HTTP gateway both pass it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::{Extensions, Request, Response};
use http_body_util::{BodyExt, Full};
use prost_reflect::DynamicMessage;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use super::methods::{self, Method};
use super::policy::Grant;
use super::{Access, check, redact};
use crate::error::Error;
use crate::gateway::{frame, unframe};
use crate::resource::Scope;
use crate::telemetry::calls::Record;

/// Services open to everybody: health and reflection.
const OPEN: [&str; 2] = ["/grpc.health.", "/grpc.reflection."];

/// Services restricted by grants.
#[derive(Clone)]
pub struct Restricted<S> {
    services: S,
    access: Access,
}

impl<S> Restricted<S> {
    /// Restricts `services` by `access`.
    pub fn new(services: S, access: Access) -> Self {
        Self { services, access }
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Restricted<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if OPEN.iter().any(|open| path.starts_with(open)) {
            return Box::pin(self.services.call(request));
        }
        let grants = match self.access.grants(&request) {
            Ok(None) => return Box::pin(self.services.call(request)),
            Ok(Some(grants)) => grants,
            Err(error) => return refused(error),
        };
        // An unknown method passes, to be answered UNIMPLEMENTED.
        let Some(method) = methods::find(path) else {
            return Box::pin(self.services.call(request));
        };
        if let Some(grant) = check::allowing_any_request(method, &grants) {
            report(request.extensions(), grant);
            if method.streams {
                self.access.keep_checking(&mut request);
            }
            return Box::pin(self.services.call(request));
        }
        let services = self.services.clone();
        Box::pin(checked(services, request, method, grants))
    }
}

/// Has the call's report name the grant.
fn report(request: &Extensions, grant: &Grant) {
    if let Some(record) = request.get::<Arc<Record>>() {
        record.set_grant(grant.role.name(), &grant.by);
    }
}

fn refused<E: Send + 'static>(error: Error) -> Answer<E> {
    Box::pin(std::future::ready(Ok(Status::from(error).into_http())))
}

/// Forwards an allowed request. The checked message is encoded again, so that the service cannot decode it
/// differently. A caller of some prefixes gets answers, errors too, without the names of other objects; the call's report
/// has the error as it was.
async fn checked<S>(
    services: S,
    request: Request<Body>,
    method: &'static Method,
    grants: Vec<Grant>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    let (mut head, body) = request.into_parts();
    let message = match body.collect().await {
        Ok(body) => unframe(body.to_bytes()),
        Err(status) => return Ok(status.into_http()),
    };
    let message = message.and_then(|m| DynamicMessage::decode(method.input.clone(), m).ok());
    let Some(message) = message else {
        let what = format!("the request is no {} in one message", method.input.name());
        return Ok(Status::from(Error::invalid("request", what)).into_http());
    };
    match check::request(method, &message, &grants) {
        Ok(grant) => report(&head.extensions, grant),
        Err(error) => {
            // The highest grant, which did not suffice.
            if let Some(grant) = grants.iter().max_by_key(|grant| grant.role) {
                report(&head.extensions, grant);
            }
            return Ok(Status::from(error).into_http());
        }
    }
    let scope = Scope::of_prefixes(grants.iter().map(|grant| grant.prefix.as_deref()));
    if scope.is_all() {
        let request = Request::from_parts(head, Body::new(Full::new(frame(&message))));
        return services.oneshot(request).await;
    }
    head.extensions.insert(scope.clone());
    let record = head.extensions.get::<Arc<Record>>().cloned();
    let request = Request::from_parts(head, Body::new(Full::new(frame(&message))));
    let answer = services.oneshot(request).await?;
    let failed =
        Status::from_header_map(answer.headers()).filter(|status| status.code() != Code::Ok);
    if let Some(whole) = failed {
        return Ok(match redact::status(&whole, &scope) {
            None => answer,
            Some(redacted) => {
                if let Some(record) = record {
                    record.set_reason(whole.message());
                }
                redacted.into_http()
            }
        });
    }
    if method.listed.is_none() {
        return Ok(answer);
    }
    Ok(filtered(answer, method, &scope).await)
}

/// Removes objects outside of the scope from the answer.
async fn filtered(answer: Response<Body>, method: &Method, scope: &Scope) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let body = match body.collect().await {
        Ok(body) => body,
        Err(status) => return status.into_http(),
    };
    let trailers = body.trailers().cloned();
    let bytes = body.to_bytes();
    let whole = match (&method.listed, bytes.is_empty()) {
        (Some((output, _)), false) => {
            let message =
                unframe(bytes).and_then(|m| DynamicMessage::decode(output.clone(), m).ok());
            let Some(mut message) = message else {
                let error = Error::internal("listing", "the answer is no single message");
                return Status::from(error).into_http();
            };
            check::filter(method, &mut message, scope);
            frame(&message)
        }
        _ => bytes,
    };
    let body = Full::new(whole).with_trailers(async move { trailers.map(Ok) });
    Response::from_parts(head, Body::new(body))
}
