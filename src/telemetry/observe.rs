//! A layer over the services that sets the method and object of a call's [`Record`]. Calls of gRPC clients and of the
//! HTTP gateway both pass it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use super::peek::Peek;
use super::{Record, methods};

/// Services whose calls are observed.
#[derive(Clone)]
pub struct Observe<S>(pub S);

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Observe<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let record = request.extensions().get::<Arc<Record>>().cloned();
        let (Some(record), Some(method)) = (record, methods::find(request.uri().path())) else {
            return Box::pin(self.0.call(request));
        };
        record.set_method(method);
        let request = request.map(|body| Peek::wrap(body, &record, method, false));
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Peek::wrap(body, &record, method, true)))
        })
    }
}
