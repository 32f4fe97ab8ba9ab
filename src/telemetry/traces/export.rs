//! Exports spans to a collector over OTLP/gRPC, from a dedicated thread that drops what it cannot send.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::steps;

/// Variables that name a collector; the second takes precedence.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// Timeout for sending the last spans when the process ends.
const LAST: Duration = Duration::from_secs(2);

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The tracer, if there is a collector.
pub(super) fn tracer() -> Option<&'static SdkTracer> {
    TRACER.get()
}

/// The exporter, for the lifetime of the process.
pub struct Traces(SdkTracerProvider);

/// Starts exporting if the environment names a collector, by the variables of OpenTelemetry's specification (SDK and
/// OTLP exporter). Call it once per process, in a tokio runtime.
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
    /// Sends the remaining spans. Blocks up to a short timeout.
    pub fn finish(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}
