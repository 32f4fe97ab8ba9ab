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
//! Spans are made on control threads alone: the app thread hands back the times of its steps. Without a
//! collector a call has no span, and everything below it costs one look at a thread-local.

mod call;
mod export;
mod steps;

use std::borrow::Cow;
use std::time::SystemTime;

use opentelemetry::trace::{Span, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};

pub use export::{Traces, start};
/// Has a future continue the trace of the call that starts it.
pub use opentelemetry::context::FutureExt as InTrace;

pub(super) use call::{CallSpan, Ended};
pub(super) use steps::recipe;

/// Whether the call that runs here is traced.
pub fn is_traced() -> bool {
    Context::map_current(|context| context.has_active_span())
}

/// Awaits `future`, as a child of the call that is traced here, if one is.
pub async fn child<F: Future>(name: &'static str, future: F) -> F::Output {
    if !is_traced() {
        return future.await;
    }
    let begun = SystemTime::now();
    let output = future.await;
    record(Cow::Borrowed(name), begun, SystemTime::now(), Vec::new());
    output
}

/// Tells of what has ended already.
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
