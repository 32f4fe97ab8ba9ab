//! Limits of the management server. What an operator may want to change is a field of [`Limits`] or a setting; the
//! others are constants here.

use std::time::Duration;

/// Default for the maximum number of connections over all ports.
pub const CONNECTIONS: usize = 1024;

/// One peer address may have this fraction of the connections: 1/4.
pub const PEER_SHARE: usize = 4;

/// Strangers may have this fraction of the connections: 1/4. A stranger is a connection that has proved nothing yet:
/// no client certificate, no answered request.
pub const STRANGER_SHARE: usize = 4;

/// One peer address may have this fraction of the strangers' places: 1/4.
pub const STRANGER_PEER_SHARE: usize = 4;

/// Maximum number of connections that wait for a place while all are busy, and their timeout.
pub const WAITING: usize = 64;
/// See [`WAITING`].
pub const WAIT_FOR_PLACE: Duration = Duration::from_secs(30);

/// Time for a displaced connection without calls to close with GOAWAY: a call may already be on its way.
pub const LEAVE: Duration = Duration::from_secs(1);

/// A connection is not displaced within this time after its last call: its client may be about to send the next one.
pub const RECENTLY_USED: Duration = Duration::from_secs(1);

/// A stranger is not displaced within this time, if the newcomer can wait that long: its first request may be on its
/// way, as where a hundred clients behind one address connect at once.
pub const FRESH: Duration = Duration::from_millis(100);

/// Timeout of a TLS handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// Timeout for a client's first bytes, and for the headers of an HTTP/1 request.
pub const OPENING: Duration = Duration::from_secs(10);

/// Timeout for the first request on an HTTP/2 connection without a client certificate.
pub const FIRST_REQUEST: Duration = Duration::from_secs(60);

/// Idle timeout of an HTTP/2 connection, which is then closed with GOAWAY.
pub const IDLE: Duration = Duration::from_secs(600);

/// Timeout for output that the client does not read.
pub const STUCK_OUTPUT: Duration = Duration::from_secs(20);

/// Interval of HTTP/2 pings, and the timeout of their answer.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// See [`KEEPALIVE`].
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Concurrent calls on one HTTP/2 connection.
pub const STREAMS: u32 = 100;

/// Concurrent calls in total and per peer address. Further calls are refused immediately.
pub const CALLS: usize = 1024;
/// See [`CALLS`].
pub const CALLS_PER_PEER: usize = 512;

/// Maximum size of a gRPC request, in bytes: a message of 4 MiB, tonic's limit, and its frame header.
pub const MESSAGE: usize = (4 << 20) + 5;

/// Maximum size of a reflection request, in bytes. tonic allocates it as soon as it is announced.
pub const REFLECTION_MESSAGE: usize = 8 << 10;

/// Deadline for a request body to be complete.
pub const REQUEST_AGE: Duration = Duration::from_secs(20);

/// The same for a stream of requests (reflection), which is open as long as its client wants.
pub const REQUEST_STREAM_AGE: Duration = Duration::from_secs(600);

/// Timeout for the client to read a part of an answer, after which the connection is closed.
pub const ANSWER_AGE: Duration = Duration::from_secs(20);

/// Backpressure: bytes of unread answers from which on a connection's next call has to wait.
pub const UNREAD: usize = 256 << 10;

/// The same once all connections together hold [`HELD`] bytes.
pub const UNREAD_UNDER_PRESSURE: usize = 16 << 10;

/// Bytes of incomplete requests that a connection may always hold. More fail while all connections together hold
/// [`HELD`] bytes.
pub const UNFINISHED_UNDER_PRESSURE: usize = 64 << 10;

/// Bytes of incomplete requests and unread answers over all connections, above which the limits per connection are
/// lower.
pub const HELD: usize = 64 << 20;

/// HTTP/2 flow control windows of a stream and of a connection: bytes in flight that are not accounted for. HTTP/2
/// allows no smaller connection window.
pub const STREAM_WINDOW: u32 = 64 << 10;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 64 << 10;

/// HTTP/2 send buffer of a stream, in bytes.
pub const SEND_BUFFER: usize = 64 << 10;

/// Maximum size of an HTTP/2 request's headers, in bytes.
pub const HEADER_LIST: u32 = 16 << 10;

/// Threads for TLS handshakes. A handshake takes milliseconds, so none runs on the threads that serve calls.
pub const HANDSHAKE_THREADS: usize = 1;

/// Niceness of the handshake threads: serving has priority.
pub const HANDSHAKE_NICE: i32 = 5;

/// Maximum number of intermediate certificates in a client's chain, and bytes of the whole chain. Longer chains are
/// refused before any signature is verified.
pub const CHAIN: usize = 4;
/// See [`CHAIN`].
pub const CHAIN_BYTES: usize = 16 << 10;

/// Backoff after a failed accept: the system is out of file descriptors or memory, which only time can free.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// File descriptors reserved for other uses than client connections.
pub const OTHER_FILES: usize = 512;

/// Limits that tests and settings can change.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Maximum size of an HTTP/JSON request body, in bytes.
    pub body: usize,
    /// Maximum size of an HTTP/1 request's headers, in bytes; 8192 or more.
    pub headers: usize,
    /// Deadline of an HTTP/JSON call, from the headers to the answer.
    pub request: Duration,
    /// Maximum number of connections.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body: 4 << 20,
            headers: 64 << 10,
            request: Duration::from_secs(60),
            connections: CONNECTIONS,
        }
    }
}
