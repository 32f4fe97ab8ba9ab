//! Reports each call once its answer is sent: log line, audit line, metrics and span.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use serde::Serialize;
use tonic::{Code, Status};

use super::methods::{self, Method};
use super::traces::{CallSpan, Ended, InTrace};
use super::{Telemetry, trace_context};
use crate::error::code_name;
use crate::server::{Caller, Protocol};

/// Maximum length of an object's name or a reason in a report, in bytes.
const TEXT: usize = 1024;

/// What is known of a call in flight. An extension of its request.
pub struct Record {
    begun: Instant,
    protocol: Protocol,
    caller: Option<Caller>,
    trace_id: Option<String>,
    /// The client's trace context is malformed, and not continued.
    is_trace_malformed: bool,
    span: Option<CallSpan>,
    /// Name in reports, for a request that is no method of the API.
    asked: Option<String>,
    method: OnceLock<&'static Method>,
    command: OnceLock<String>,
    object: Mutex<Option<String>>,
    /// The role of the grant that decided on the call, and how it knows the client.
    grant: OnceLock<(&'static str, Arc<str>)>,
    /// The message of the error, if the client gets another one.
    reason: OnceLock<String>,
    /// Whether the request is still incomplete.
    incomplete: AtomicBool,
}

impl Record {
    fn new<B>(protocol: Protocol, request: &Request<B>) -> Self {
        let path = request.uri().path();
        let known = match protocol {
            Protocol::Grpc => methods::find(path),
            Protocol::Http | Protocol::Rpc => None,
        };
        let asked = match (known, protocol) {
            (Some(_), _) => None,
            (None, Protocol::Grpc) => Some(cut(path.trim_start_matches('/')).to_owned()),
            (None, _) => Some(format!("{} {}", request.method(), cut(path))),
        };
        let parent = trace_context::parent(request.headers());
        let span = CallSpan::begin(parent.as_ref(), request.headers());
        let trace_id = match &span {
            Some(span) => Some(span.trace_id()),
            None => parent.map(|parent| parent.trace.to_owned()),
        };
        Self {
            begun: Instant::now(),
            protocol,
            caller: request.extensions().get::<Caller>().cloned(),
            trace_id,
            is_trace_malformed: trace_context::is_malformed(request.headers()),
            span,
            asked,
            method: known.map(OnceLock::from).unwrap_or_default(),
            command: OnceLock::new(),
            object: Mutex::new(None),
            grant: OnceLock::new(),
            reason: OnceLock::new(),
            incomplete: AtomicBool::new(false),
        }
    }

    /// Sets the method.
    pub(super) fn set_method(&self, method: &'static Method) {
        // A merged list calls several methods: the first one counts.
        let _ = self.method.set(method);
    }

    /// Sets the method by its gRPC path. Called early, so that the method is reported even if the call fails before it
    /// runs.
    pub fn routed_to(&self, path: &str) {
        if let Some(method) = methods::find(path) {
            self.set_method(method);
        }
    }

    /// Sets the command of SPDK's JSON-RPC.
    pub fn set_command(&self, command: &str) {
        let _ = self.command.set(format!("SPDK {}", cut(command)));
    }

    /// Sets the object. The last one counts: a created object's name is in the answer.
    pub(super) fn set_object(&self, name: String) {
        *self.object.lock() = Some(name);
    }

    /// Sets the grant that allows the call, or that does not suffice for it: its role, and how it knows the client.
    pub fn set_grant(&self, role: &'static str, by: &Arc<str>) {
        let _ = self.grant.set((role, Arc::clone(by)));
    }

    /// Sets the message of the error, of which the client gets a part.
    pub fn set_reason(&self, message: &str) {
        let _ = self.reason.set(cut(message).to_owned());
    }

    /// Marks the request as incomplete or complete. A call that ends incomplete, or is refused at a limit, has done
    /// nothing: the rate of such lines is limited.
    pub fn set_incomplete(&self, incomplete: bool) {
        self.incomplete.store(incomplete, Ordering::Relaxed);
    }

    fn changes(&self) -> bool {
        // Whether a command of SPDK changes anything is unknown.
        self.command.get().is_some() || self.method.get().is_some_and(|method| method.changes)
    }

    fn method(&self) -> &str {
        let command = self.command.get().map(String::as_str);
        let method = self.method.get().map(|method| method.name.as_str());
        command
            .or(method)
            .or(self.asked.as_deref())
            .unwrap_or_default()
    }
}

/// Result of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    code: Code,
    reason: Option<String>,
}

impl From<&Status> for Outcome {
    fn from(status: &Status) -> Self {
        let message = status.message();
        Self {
            code: status.code(),
            reason: (!message.is_empty()).then(|| cut(message).to_owned()),
        }
    }
}

impl Outcome {
    fn of<B>(response: &Response<B>) -> Self {
        let extension = response.extensions().get::<Status>().cloned();
        if let Some(status) = extension.or_else(|| Status::from_header_map(response.headers())) {
            return Self::from(&status);
        }
        let code = match response.status().as_u16() {
            100..400 => Code::Ok,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::NotFound,
            405 => Code::Unimplemented,
            429 => Code::ResourceExhausted,
            400..500 => Code::InvalidArgument,
            503 => Code::Unavailable,
            504 => Code::DeadlineExceeded,
            _ => Code::Internal,
        };
        Self { code, reason: None }
    }

    fn abandoned() -> Self {
        Self {
            code: Code::Cancelled,
            reason: Some("the client left before the answer".to_owned()),
        }
    }
}

/// The report of a call.
#[derive(Serialize)]
pub(super) struct Entry<'a> {
    pub(super) time: String,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<&'a str>,
    protocol: &'static str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    duration_us: u64,
    trace_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'static str>,
}

/// Reports a call when dropped.
struct Report {
    telemetry: Arc<Telemetry>,
    record: Arc<Record>,
    answered: Option<(Outcome, Duration)>,
}

impl Report {
    /// Takes the final status of a stream from its trailers.
    fn observe<D>(&mut self, frame: &Frame<D>) {
        let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) else {
            return;
        };
        if let Some((outcome, took)) = &mut self.answered
            && status.code() != outcome.code
        {
            *outcome = Outcome::from(&status);
            *took = self.record.begun.elapsed();
        }
    }

    fn write(&self, outcome: &Outcome, took: Duration) {
        let record = &*self.record;
        let method = record.method.get().map_or("other", |m| m.name.as_str());
        let code = code_name(outcome.code);
        self.telemetry.metrics.rpc(method, code, took);
        if let Some(span) = &record.span {
            span.end(&Ended {
                method: record.method(),
                object: record.object.lock().as_deref().map(cut),
                protocol: protocol(record.protocol),
                peer: record
                    .caller
                    .as_ref()
                    .and_then(|caller| caller.address.network()),
                code: (outcome.code, code),
            });
        }
        let mut more = None;
        if outcome.code != Code::Ok && record.incomplete.load(Ordering::Relaxed) {
            match self.telemetry.incomplete.allow() {
                None => return,
                left_out => more = left_out.filter(|left_out| *left_out > 0),
            }
        }
        let audit = self.telemetry.audit.as_ref();
        let audit = audit.filter(|_| record.changes());
        let level = level(record.changes(), outcome.code);
        if audit.is_none() && !is_logged(level) {
            return;
        }
        let object = record.object.lock();
        let trace_id = match &record.trace_id {
            Some(id) => Cow::Borrowed(id.as_str()),
            None => Cow::Owned(trace_context::new_trace_id()),
        };
        let caller = record.caller.as_ref();
        let entry = Entry {
            time: String::new(),
            method: record.method(),
            object: object.as_deref().map(cut),
            peer: caller.map(|caller| caller.address.to_string()),
            subject: caller.and_then(|caller| caller.subject.as_deref()),
            role: record.grant.get().map(|(role, _)| *role),
            grant: record.grant.get().map(|(_, by)| cut(by)),
            protocol: protocol(record.protocol),
            code,
            reason: record
                .reason
                .get()
                .or(outcome.reason.as_ref())
                .map(String::as_str),
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            trace_id: &trace_id,
            traceparent: record.is_trace_malformed.then_some("malformed"),
        };
        entry.log(level, more);
        if let Some(audit) = audit {
            audit.write(entry);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        match self.answered.take() {
            Some((outcome, took)) => self.write(&outcome, took),
            None => self.write(&Outcome::abandoned(), self.record.begun.elapsed()),
        }
    }
}

/// Target of the log lines, for `log-level`.
const TARGET: &str = "opi_spdk::calls";

fn level(changes: bool, code: Code) -> tracing::Level {
    match code {
        // Faults of the server.
        Code::Unknown | Code::Internal | Code::DataLoss | Code::Unavailable => tracing::Level::WARN,
        _ if changes => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    }
}

fn is_logged(level: tracing::Level) -> bool {
    use tracing::{Level, enabled};
    match level {
        Level::WARN => enabled!(target: TARGET, Level::WARN),
        Level::INFO => enabled!(target: TARGET, Level::INFO),
        _ => enabled!(target: TARGET, Level::DEBUG),
    }
}

impl Entry<'_> {
    /// Writes the log line; `more` is the number of similar calls whose lines were suppressed.
    fn log(&self, level: tracing::Level, more: Option<u64>) {
        macro_rules! event {
            ($event:ident) => {
                tracing::$event!(
                    target: TARGET,
                    method = %self.method,
                    object = self.object.map(tracing::field::display),
                    peer = self.peer.as_deref().map(tracing::field::display),
                    subject = self.subject,
                    role = self.role,
                    grant = self.grant,
                    protocol = %self.protocol,
                    code = %self.code,
                    reason = self.reason,
                    duration_us = self.duration_us,
                    trace_id = %self.trace_id,
                    traceparent = self.traceparent,
                    more,
                    "call"
                )
            };
        }
        match level {
            tracing::Level::WARN => event!(warn),
            tracing::Level::INFO => event!(info),
            _ => event!(debug),
        }
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Grpc => "grpc",
        Protocol::Http => "http",
        Protocol::Rpc => "spdk-rpc",
    }
}

/// Truncates a text that a client chose.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT)).unwrap_or(text)
}

/// Passes a request to `answer` and reports the call.
pub async fn observed<B, A, F>(
    telemetry: &Arc<Telemetry>,
    protocol: Protocol,
    mut request: Request<B>,
    answer: impl FnOnce(Request<B>) -> F,
) -> Response<Observed<A>>
where
    F: Future<Output = Response<A>>,
{
    let record = Arc::new(Record::new(protocol, &request));
    request.extensions_mut().insert(Arc::clone(&record));
    let mut report = Report {
        telemetry: Arc::clone(telemetry),
        record,
        answered: None,
    };
    let context = report.record.span.as_ref().map(CallSpan::context);
    let response = match context {
        None => answer(request).await,
        Some(context) => answer(request).with_context(context).await,
    };
    report.answered = Some((Outcome::of(&response), report.record.begun.elapsed()));
    response.map(|body| Observed {
        body,
        report: Some(report),
    })
}

/// An answer body that reports the call when it has been read completely or dropped.
pub struct Observed<A> {
    body: A,
    report: Option<Report>,
}

impl<A: HttpBody + Unpin> HttpBody for Observed<A> {
    type Data = A::Data;
    type Error = A::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<A::Data>, A::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(Ok(frame)), Some(report)) = (&frame, &mut self.report) {
            report.observe(frame);
        }
        if frame.is_none() {
            self.report = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_an_answer_is_that_of_grpc_wherever_it_stands() {
        let of = |response: Response<()>| Outcome::of(&response);
        let ok = of(Response::new(()));
        assert_eq!((ok.code, ok.reason), (Code::Ok, None));
        let mut extension = Response::new(());
        let status = Status::not_found("no such volume");
        extension.extensions_mut().insert(status.clone());
        let header = status.into_http::<()>();
        for response in [extension, header] {
            let outcome = of(response);
            assert_eq!(outcome.code, Code::NotFound);
            assert_eq!(outcome.reason.as_deref(), Some("no such volume"));
        }
        let mut plain = Response::new(());
        *plain.status_mut() = axum::http::StatusCode::BAD_GATEWAY;
        assert_eq!(of(plain).code, Code::Internal);
    }

    #[test]
    fn a_stream_ends_as_its_trailers_say() {
        let request = Request::new(());
        let mut report = Report {
            telemetry: Telemetry::new(None),
            record: Arc::new(Record::new(Protocol::Grpc, &request)),
            answered: Some((Outcome::of(&Response::new(())), Duration::ZERO)),
        };
        report.observe(&Frame::data(&b"an event"[..]));
        let end = |status: Status| {
            let mut trailers = axum::http::HeaderMap::new();
            status
                .add_header(&mut trailers)
                .expect("a status has a header");
            Frame::<&[u8]>::trailers(trailers)
        };
        let code = |report: &Report| report.answered.as_ref().map(|(outcome, _)| outcome.code);
        report.observe(&end(Status::new(Code::Ok, "")));
        assert_eq!(code(&report), Some(Code::Ok));
        report.observe(&end(Status::out_of_range("too slow")));
        let (outcome, _) = report.answered.as_ref().expect("answered");
        assert_eq!(outcome.reason.as_deref(), Some("too slow"));
        assert_eq!(code(&report), Some(Code::OutOfRange));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = "é".repeat(TEXT);
        assert_eq!(cut(&long).len(), TEXT);
        let odd = format!("a{long}");
        assert_eq!(cut(&odd).len(), TEXT - 1);
    }

    #[test]
    fn levels_follow_what_was_done_and_whose_fault_it_was() {
        assert_eq!(level(true, Code::Ok), tracing::Level::INFO);
        assert_eq!(level(true, Code::InvalidArgument), tracing::Level::INFO);
        assert_eq!(level(false, Code::NotFound), tracing::Level::DEBUG);
        assert_eq!(level(false, Code::Internal), tracing::Level::WARN);
        assert_eq!(level(true, Code::Unavailable), tracing::Level::WARN);
    }
}
