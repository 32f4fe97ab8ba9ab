//! The span of a call, by OpenTelemetry's semantic conventions for RPC (1.45).

use std::str::FromStr;

use axum::http::HeaderMap;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue};
use tonic::Code;

use super::export::tracer;
use crate::telemetry::trace_context::Parent;

/// The span of a traced call.
pub struct CallSpan(Context);

/// Attributes of a call that are known at its end.
pub struct Ended<'a> {
    /// Name of the method or of the request.
    pub method: &'a str,
    /// Name of the object.
    pub object: Option<&'a str>,
    /// `grpc`, `http` or `spdk-rpc`.
    pub protocol: &'static str,
    /// The client's address.
    pub peer: Option<std::net::SocketAddr>,
    /// The result.
    pub code: (Code, &'static str),
}

impl CallSpan {
    /// Starts a span, as a child of `parent` if the client has sent one. `None` without a collector, or if the client
    /// or the sampler excludes the trace.
    pub fn begin(parent: Option<&Parent<'_>>, headers: &HeaderMap) -> Option<Self> {
        let tracer = tracer()?;
        let root = Context::new();
        let context = match parent.and_then(|parent| remote(parent, headers)) {
            Some(parent) => root.with_remote_span_context(parent),
            None => root,
        };
        let span = tracer.span_builder("call").with_kind(SpanKind::Server);
        let span = tracer.build_with_context(span, &context);
        let context = context.with_span(span);
        context.span().is_recording().then_some(Self(context))
    }

    /// Context for work that belongs to the call.
    pub fn context(&self) -> Context {
        self.0.clone()
    }

    /// The trace ID, for the log.
    pub fn trace_id(&self) -> String {
        self.0.span().span_context().trace_id().to_string()
    }

    /// Ends the span.
    pub fn end(&self, ended: &Ended<'_>) {
        let span = self.0.span();
        span.update_name(ended.method.to_owned());
        let (code, name) = ended.code;
        let system = match ended.protocol {
            "spdk-rpc" => "jsonrpc",
            _ => "grpc",
        };
        let mut attributes = vec![
            KeyValue::new("rpc.system.name", system),
            KeyValue::new("rpc.method", ended.method.to_owned()),
            KeyValue::new("rpc.response.status_code", name),
            KeyValue::new("opi_spdk.protocol", ended.protocol),
        ];
        if let Some(object) = ended.object {
            attributes.push(KeyValue::new("opi_spdk.object", object.to_owned()));
        }
        if let Some(peer) = ended.peer {
            attributes.push(KeyValue::new("client.address", peer.ip().to_string()));
            attributes.push(KeyValue::new("client.port", i64::from(peer.port())));
        }
        // A server span is an error only if the fault is the server's.
        let fault = matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        );
        if fault {
            attributes.push(KeyValue::new("error.type", name));
            span.set_status(Status::error(name));
        }
        span.set_attributes(attributes);
        span.end();
    }
}

fn remote(parent: &Parent<'_>, headers: &HeaderMap) -> Option<SpanContext> {
    let state = headers
        .get("tracestate")
        .and_then(|state| state.to_str().ok())
        .and_then(|state| TraceState::from_str(state).ok())
        .unwrap_or_default();
    let context = SpanContext::new(
        TraceId::from_hex(parent.trace).ok()?,
        SpanId::from_hex(parent.span).ok()?,
        TraceFlags::new(u8::from(parent.is_sampled)),
        true,
        state,
    );
    context.is_valid().then_some(context)
}
