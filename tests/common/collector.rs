//! An OTLP receiver that stores what the program under test exports.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use super::{Options, eventually};

/// A collector on a loopback port.
#[derive(Clone, Default)]
pub struct Collector {
    received: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.received.lock().expect("not poisoned");
        received.push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts a collector; returns it with its address.
    pub async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        (collector, address)
    }

    /// Returns all requests, which hold the spans with everything that describes them.
    pub fn received(&self) -> Vec<ExportTraceServiceRequest> {
        self.received.lock().expect("not poisoned").clone()
    }

    /// Returns the spans.
    pub fn spans(&self) -> Vec<Span> {
        let resources = self.received().into_iter().flat_map(|of| of.resource_spans);
        let scopes = resources.flat_map(|of| of.scope_spans);
        scopes.flat_map(|of| of.spans).collect()
    }

    /// Returns the service names of the resources.
    pub fn services(&self) -> BTreeSet<String> {
        let resources = self.received().into_iter().flat_map(|of| of.resource_spans);
        let names = resources
            .filter_map(|of| text_of(&of.resource.unwrap_or_default().attributes, "service.name"));
        names.collect()
    }

    /// Waits for the span of the call on this object; returns it with its children.
    pub async fn call(&self, object: &str) -> (Span, Vec<Span>) {
        eventually("the span of a call", Duration::from_secs(10), async || {
            let spans = self.spans();
            let call = spans
                .iter()
                .find(|span| attribute(span, "opi_spdk.object").as_deref() == Some(object))?;
            let children = spans.iter().filter(|of| of.parent_span_id == call.span_id);
            Some((call.clone(), children.cloned().collect()))
        })
        .await
    }
}

/// Returns the text of a span's attribute.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    text_of(&span.attributes, key)
}

fn text_of(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|of| of.key == key)?;
    match found.value.clone()?.value? {
        Any::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Returns options with which spans are exported to this address, ten times per second.
pub fn exporting_to(address: SocketAddr) -> Options {
    let endpoint = format!("http://{address}");
    Options::default()
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .variable("OTEL_BSP_SCHEDULE_DELAY", "100")
}
