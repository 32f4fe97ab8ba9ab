//! The accept loop of one port, and the lifetime of a connection.
//!
//! ```text
//! accept ─► place ─► TLS handshake ─► requests ─┬─► closed by the client
//!             │            └ late, refused       ├─► displaced, idle, answers unread: closed
//!             └ none free: closed                └─► stop: GOAWAY, calls in flight finish
//! ```

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::admission::{Admission, Peer, Place};
use super::calls::{Calls, Connection};
use super::held::{Held, Total};
use super::idle_timeout::IdleTimeout;
use super::limits::{
    ACCEPT_BACKOFF, ANSWER_AGE, CONNECTION_WINDOW, FIRST_REQUEST, HEADER_LIST, IDLE, KEEPALIVE,
    KEEPALIVE_TIMEOUT, LEAVE, OPENING, SEND_BUFFER, STREAM_WINDOW, STREAMS,
};
use super::listener::{Address, Listener, Stream};
use super::rate_limit::RateLimit;
use super::service::{Caller, Protocol, Service};
use super::tls::{Handshakes, Tls};
use super::{Limits, limits};
use crate::access::Access;
use crate::shutdown::Stopping;
use crate::telemetry::{Telemetry, calls::observed};

/// Interval of the checks for unread answers and idle connections.
const CHECK: Duration = Duration::from_secs(1);

/// Margin over the request limit before the stream's idle timeout: nothing moves while a request runs, and the answer
/// still has to be written.
const ANSWER_MARGIN: Duration = OPENING;

/// State shared by all ports: the limits apply to the whole process.
pub struct Shared {
    limits: Limits,
    admission: Arc<Admission>,
    calls: Arc<Calls>,
    held: Arc<Total>,
    handshakes: Option<(Tls, Handshakes)>,
    refused: RateLimit,
    failed_handshakes: RateLimit,
    access: Access,
    telemetry: Arc<Telemetry>,
}

impl Shared {
    /// Prepares the state. Users of this machine without a grant of `access` count as one peer; calls are reported to
    /// `telemetry`.
    ///
    /// # Errors
    /// Threads for TLS handshakes cannot be started.
    pub fn new(
        limits: Limits,
        tls: Option<Tls>,
        access: Access,
        telemetry: Arc<Telemetry>,
    ) -> Result<Arc<Self>, String> {
        let start = |tls| match Handshakes::start() {
            Ok(handshakes) => Ok((tls, handshakes)),
            Err(error) => Err(format!("cannot start threads for TLS: {error}")),
        };
        Ok(Arc::new(Self {
            admission: Admission::new(limits.connections),
            limits,
            calls: Arc::default(),
            held: Arc::default(),
            handshakes: tls.map(start).transpose()?,
            refused: RateLimit::default(),
            failed_handshakes: RateLimit::default(),
            access,
            telemetry,
        }))
    }

    /// Whether TCP connections use TLS.
    pub fn has_tls(&self) -> bool {
        self.handshakes.is_some()
    }

    fn peer(&self, address: Address) -> Peer {
        match address {
            Address::Network(address) => address.ip().into(),
            Address::User(uid) if self.access.knows_user(uid) => Peer::User(uid),
            Address::User(_) => Peer::OtherUsers,
        }
    }
}

/// One port.
pub struct Port {
    shared: Arc<Shared>,
    service: Service,
    builder: Builder<TokioExecutor>,
}

impl Port {
    /// Serves `service`: gRPC over HTTP/2 only, anything else also over HTTP/1.1.
    pub fn new(shared: &Arc<Shared>, service: Service) -> Arc<Self> {
        Arc::new(Self {
            builder: builder(&shared.limits, service.protocol()),
            shared: Arc::clone(shared),
            service,
        })
    }

    /// Serves until `stopping`, then stops accepting, drains requests in flight and returns. The caller bounds the
    /// drain.
    pub async fn serve(self: Arc<Self>, listener: Listener, stopping: Stopping) {
        let mut stop = pin!(stopping.clone().wait());
        let (open, mut all_closed) = mpsc::channel::<()>(1);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(more) = self.shared.refused.allow() {
                        tracing::warn!(%error, more, "a connection cannot be accepted");
                    }
                    sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            // Admitted in the accept loop, in order of arrival: spawned tasks run in another order, and an older
            // connection could then displace a newer one.
            let peer = self.shared.peer(address);
            let place = self.shared.admission.enter_gently(peer);
            let (port, stopping, open) = (Arc::clone(&self), stopping.clone(), open.clone());
            tokio::spawn(async move {
                port.connection(stream, (address, peer), place, stopping)
                    .await;
                drop(open);
            });
        }
        drop((listener, open));
        all_closed.recv().await;
    }

    async fn connection(
        &self,
        stream: Stream,
        (address, peer): (Address, Peer),
        place: Option<Place>,
        stopping: Stopping,
    ) {
        let shared = &self.shared;
        let place = match place {
            Some(place) => Some(place),
            None => shared.admission.enter(peer).await,
        };
        let Some(place) = place else {
            if let Some(more) = shared.refused.allow() {
                let places = shared.limits.connections;
                tracing::warn!(peer = %address, more, places, "connection refused: all are busy");
            }
            return;
        };
        let _open = shared.telemetry.metrics.connection();
        let stream = match stream {
            Stream::Tcp(stream) => stream,
            Stream::Local(stream) => {
                // The kernel authenticates local clients.
                if matches!(peer, Peer::User(_)) {
                    place.mark_known();
                }
                let client = (Caller::new(address, None), peer);
                return self.requests(stream, client, place, stopping).await;
            }
        };
        // Answers are small and written at once: Nagle's algorithm would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let Some((tls, handshakes)) = &shared.handshakes else {
            let client = (Caller::new(address, None), peer);
            return self.requests(stream, client, place, stopping).await;
        };
        let accepted = tokio::select! {
            accepted = handshakes.accept(tls, stream) => accepted,
            () = place.displaced() => return,
            () = stopping.clone().wait() => return,
        };
        match accepted {
            Ok(stream) => {
                place.mark_known();
                let certificates = stream.get_ref().1.peer_certificates();
                let certificate = certificates.and_then(<[CertificateDer]>::first);
                let certificate = certificate.map(|own| own.clone().into_owned());
                let client = (Caller::new(address, certificate), peer);
                self.requests(stream, client, place, stopping).await;
            }
            Err(reason) => {
                if let Some(more) = shared.failed_handshakes.allow() {
                    tracing::warn!(peer = %address, reason, more, "TLS handshake failed");
                }
            }
        }
    }

    async fn requests<S>(
        &self,
        stream: S,
        (caller, peer): (Caller, Peer),
        place: Place,
        stopping: Stopping,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Arc::new(Connection {
            place,
            held: Held::new(&self.shared.held),
            peer,
            calls: Arc::clone(&self.shared.calls),
        });
        let service = service_fn({
            let (service, connection) = (self.service.clone(), Arc::clone(&connection));
            let telemetry = Arc::clone(&self.shared.telemetry);
            move |mut request: Request<Incoming>| {
                let (service, connection) = (service.clone(), Arc::clone(&connection));
                let telemetry = Arc::clone(&telemetry);
                caller.attach_to(&mut request);
                async move {
                    let answer = |request| service.answer(&connection, request);
                    let protocol = service.protocol();
                    Ok::<_, Infallible>(observed(&telemetry, protocol, request, answer).await)
                }
            }
        });
        let idle = self.shared.limits.request + ANSWER_MARGIN;
        let timed = match self.service.protocol() {
            Protocol::Grpc => IdleTimeout::http2,
            Protocol::Http | Protocol::Rpc => IdleTimeout::new,
        };
        let stream = TokioIo::new(timed(stream, OPENING, idle));
        let mut serving = pin!(self.builder.serve_connection(stream, service));
        let mut stop = pin!(stopping.wait());
        let mut stopped = false;
        let mut leaving = None;
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let begun = Instant::now();
        loop {
            tokio::select! {
                ended = &mut serving => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "connection ended");
                    }
                    return;
                }
                () = &mut stop, if !stopped => {
                    stopped = true;
                    serving.as_mut().graceful_shutdown();
                }
                // Race: a call may have begun since this connection was chosen to be displaced. It is drained.
                () = connection.place.displaced(), if leaving.is_none() => {
                    if connection.place.idle().is_some() && !connection.place.is_known() {
                        return;
                    }
                    leaving = Some(Instant::now());
                    if !stopped {
                        stopped = true;
                        serving.as_mut().graceful_shutdown();
                    }
                }
                _ = check.tick() => match verdict(&connection, begun) {
                    Verdict::Good | Verdict::Idle if self.is_drained(&connection, leaving) => return,
                    Verdict::Good => {}
                    Verdict::Idle if stopped => {}
                    Verdict::Idle => {
                        stopped = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    Verdict::Unread => {
                        tracing::debug!("connection closed: its answers are not read");
                        return;
                    }
                },
            }
        }
    }

    /// Whether a displaced connection has had enough time to drain its calls.
    fn is_drained(&self, connection: &Connection, leaving: Option<Instant>) -> bool {
        let Some(left) = leaving.map(|since| since.elapsed()) else {
            return false;
        };
        let is_idle = connection.place.idle().is_some_and(|idle| idle >= LEAVE);
        left >= self.shared.limits.request || left >= LEAVE && is_idle
    }
}

/// State of a connection at a periodic check.
enum Verdict {
    Good,
    /// Idle beyond its timeout.
    Idle,
    /// The client does not read its answers.
    Unread,
}

fn verdict(connection: &Connection, begun: Instant) -> Verdict {
    let unread = connection.held.oldest_unread();
    if unread.is_some_and(|age| age >= ANSWER_AGE) {
        return Verdict::Unread;
    }
    let idle = connection.place.idle();
    let limit = if connection.place.is_known() {
        IDLE
    } else {
        FIRST_REQUEST
    };
    match idle {
        Some(idle) if idle >= limit && begun.elapsed() >= limit => Verdict::Idle,
        _ => Verdict::Good,
    }
}

fn builder(limits: &Limits, protocol: Protocol) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if protocol == Protocol::Grpc {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::OPENING)
        // A client that has shut down its sending side still waits for its answer. Not for the JSON-RPC proxy, which
        // has few places and needs them back when a client leaves.
        .half_close(protocol == Protocol::Http)
        .max_buf_size(limits.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEPALIVE))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_header_list_size(HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS);
    builder
}
