//! Spans of calls, for an OpenTelemetry collector.
//!
//! ```text
//! call (parent: the client's traceparent)
//!  ├─ lock wait         for changes of the same objects
//!  ├─ mailbox wait      until the app thread begins
//!  ├─ step RECIPE       each step on the app thread
//!  └─ store commit      until it is durable
//! ```
//!
//! Only control threads make spans: the app thread returns the timing of its steps. Without a collector a call has no
//! span, and each trace point costs one read of a thread-local.

mod call;
mod export;
mod steps;

use std::borrow::Cow;
use std::time::SystemTime;

use opentelemetry::trace::{Span, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};

pub use export::{Traces, start};
/// Makes a future continue the trace of the call that starts it.
pub use opentelemetry::context::FutureExt as InTrace;

pub(super) use call::{CallSpan, Ended};
pub(super) use steps::recipe;

/// Whether the current call is traced.
pub fn is_traced() -> bool {
    Context::map_current(|context| context.has_active_span())
}

/// Awaits `future` in a child span of the current call, if the call is traced.
pub async fn child<F: Future>(name: &'static str, future: F) -> F::Output {
    if !is_traced() {
        return future.await;
    }
    let begun = SystemTime::now();
    let output = future.await;
    record(Cow::Borrowed(name), begun, SystemTime::now(), Vec::new());
    output
}

/// Records a span that has already ended.
fn record(
    name: Cow<'static, str>,
    begun: SystemTime,
    ended: SystemTime,
    attributes: Vec<KeyValue>,
) {
    let Some(tracer) = export::tracer() else {
        return;
    };
    let span = tracer
        .span_builder(name)
        .with_start_time(begun)
        .with_attributes(attributes);
    tracer.build(span).end_with_timestamp(ended);
}
