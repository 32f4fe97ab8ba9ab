//! The bounds of the management server. What an operator may want to change is a field of
//! [`Limits`] or a setting; the rest are constants, listed here once.

use std::time::Duration;

/// Most connections of all ports together, unless the operator sets another number.
pub const CONNECTIONS: usize = 1024;

/// The share of the connections that one peer address may have: one in so many.
pub const PEER_SHARE: usize = 4;

/// The share of the connections that strangers may have: one in so many. A stranger is a connection
/// that has proved nothing yet: no client certificate, no answered request.
pub const STRANGER_SHARE: usize = 4;

/// The share of the strangers' places that one peer address may have: one in so many.
pub const STRANGER_PEER_SHARE: usize = 4;

/// Connections that wait for a place while all are busy, and for how long.
pub const WAITING: usize = 64;
/// See [`WAITING`].
pub const WAIT_FOR_PLACE: Duration = Duration::from_secs(30);

/// How long a connection that is closed in favor of another may take to end with GOAWAY where no call is under
/// way: one may be about to come.
pub const LEAVE: Duration = Duration::from_secs(1);

/// A connection without a call is not closed in favor of another within this time of its last one:
/// its client may be about to send the next.
pub const RECENTLY_USED: Duration = Duration::from_secs(1);

/// How long a TLS handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client may take for its first bytes, and for the headers of an HTTP/1 request.
pub const OPENING: Duration = Duration::from_secs(10);

/// How long an HTTP/2 connection without a client certificate may live without its first request.
pub const FIRST_REQUEST: Duration = Duration::from_secs(60);

/// After so long without a call an HTTP/2 connection is closed with GOAWAY.
pub const IDLE: Duration = Duration::from_secs(600);

/// How long output may be stuck because the client does not read.
pub const STUCK_OUTPUT: Duration = Duration::from_secs(20);

/// Interval of HTTP/2 pings, and how long their answer may take.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// See [`KEEPALIVE`].
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls that one HTTP/2 connection may have under way.
pub const STREAMS: u32 = 100;

/// Calls under way in all, and of one peer address. Further ones are refused at once.
pub const CALLS: usize = 1024;
/// See [`CALLS`].
pub const CALLS_PER_PEER: usize = 512;

/// Bytes of a gRPC request: a message of 4 MiB, which is tonic's limit, with its head.
pub const MESSAGE: usize = (4 << 20) + 5;

/// Bytes of a reflection request. Room for it is made as soon as it is announced.
pub const REFLECTION_MESSAGE: usize = 8 << 10;

/// How long the body of a request may take to arrive in full.
pub const REQUEST_AGE: Duration = Duration::from_secs(20);

/// The same for a stream of requests (reflection), which lives as long as its client wants more.
pub const REQUEST_STREAM_AGE: Duration = Duration::from_secs(600);

/// How long a part of an answer may wait for its client to read it. Then the connection is closed.
pub const ANSWER_AGE: Duration = Duration::from_secs(20);

/// Bytes of answers that a connection may leave unread before its next call begins.
pub const UNREAD: usize = 256 << 10;

/// The same once all connections together have [`HELD`] bytes of requests and answers in memory.
pub const UNREAD_UNDER_PRESSURE: usize = 16 << 10;

/// Bytes of half-sent requests that a connection may always have; those above fail while all together
/// have [`HELD`].
pub const UNFINISHED_UNDER_PRESSURE: usize = 64 << 10;

/// Bytes of half-sent requests and unread answers of all connections, above which each connection
/// gets less.
pub const HELD: usize = 64 << 20;

/// HTTP/2 flow control: bytes that a client may send ahead, on a stream and on a connection, where nobody
/// counts them. HTTP/2 knows no smaller window of a connection.
pub const STREAM_WINDOW: u32 = 64 << 10;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 64 << 10;

/// Bytes that HTTP/2 buffers for a stream on the way out.
pub const SEND_BUFFER: usize = 64 << 10;

/// Bytes of the headers of an HTTP/2 request.
pub const HEADER_LIST: u32 = 16 << 10;

/// Threads for TLS handshakes, which cost milliseconds: they never run on those that serve calls.
pub const HANDSHAKE_THREADS: usize = 1;

/// Niceness of those threads: serving goes before handshakes.
pub const HANDSHAKE_NICE: i32 = 5;

/// Certificates that a client may send above its own, and bytes of all of them. More are refused
/// before any signature is verified.
pub const CHAIN: usize = 4;
/// See [`CHAIN`].
pub const CHAIN_BYTES: usize = 16 << 10;

/// How long to wait when a connection cannot be accepted: the system is out of file descriptors or
/// memory, and only time brings them back.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// File descriptors that are not for connections of clients.
pub const OTHER_FILES: usize = 512;

/// What the server takes at most, where tests and settings choose.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's body over HTTP/JSON.
    pub body: usize,
    /// Bytes of the headers of an HTTP/1 request; at least 8192.
    pub headers: usize,
    /// From a request's headers to its answer, over HTTP/JSON.
    pub request: Duration,
    /// Connections at a time.
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
