//! Where spans go: to a collector over OTLP/gRPC, from a thread of its own, which drops what it cannot
//! get rid of.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::steps;

/// Variables that name a collector; the second has precedence.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// How long the end of the process waits for a collector to take the last spans.
const LAST: Duration = Duration::from_secs(2);

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// What makes spans, if there is a collector.
pub(super) fn tracer() -> Option<&'static SdkTracer> {
    TRACER.get()
}

/// The export of spans, while the process runs.
pub struct Traces(SdkTracerProvider);

/// Begins to export, if the environment names a collector: the variables of OpenTelemetry's specification,
/// SDK environment variables and OTLP exporter. Within a tokio runtime, once in a process.
///
/// # Errors
/// One line for the operator.
pub fn start() -> Result<Option<Traces>, String> {
    let named = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let Some(variable) = ENDPOINTS.iter().rev().find(|name| named(name)) else {
        return Ok(None);
    };
    let exporter = SpanExporter::builder().with_tonic().build();
    let exporter = exporter.map_err(|error| {
        format!("{variable}: {error}; give the collector's address as http://HOST:4317")
    })?;
    let service = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "opi-spdk".to_owned());
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(version);
    let provider = SdkTracerProvider::builder()
        .with_resource(resource.build())
        .with_batch_exporter(exporter)
        .build();
    if TRACER.set(provider.tracer("opi-spdk")).is_ok() {
        spdk::observe_calls(&steps::Steps);
    }
    tracing::info!("traces go to the collector of {variable}");
    Ok(Some(Traces(provider)))
}

impl Traces {
    /// Sends what is left, as far as that is possible in a short time. Blocks for that time at most.
    pub fn finish(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}
