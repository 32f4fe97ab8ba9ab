//! A client of server-sent events.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Timeout of a line.
const LIMIT: Duration = Duration::from_secs(20);

/// A client like a browser's EventSource.
pub struct EventSource(BufReader<TcpStream>);

/// An event.
pub struct SentEvent {
    /// Its ID; empty if it has none.
    pub id: String,
    /// Its type; empty if it has none.
    pub event: String,
    /// Its data.
    pub data: Value,
}

impl EventSource {
    /// Connects with this query and these header lines, and waits until the stream has started.
    pub fn open(address: SocketAddr, query: &str, headers: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts connections");
        Self::over(stream, query, headers)
    }

    /// As [`open`](Self::open), over this connection.
    pub fn over(mut stream: TcpStream, query: &str, headers: &str) -> Self {
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let request = format!("GET /v1/events{query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        stream
            .write_all(request.as_bytes())
            .expect("the request is sent");
        let mut source = Self(BufReader::new(stream));
        let status = source.line();
        assert!(status.contains(" 200 "), "{status}");
        while source.line() != ":" {}
        source
    }

    /// Returns the next line.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).expect("in time");
        assert!(read > 0, "the stream has ended");
        line.trim_end().to_owned()
    }

    /// Returns all that comes until the server closes the connection.
    pub fn rest(mut self) -> String {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => String::from_utf8_lossy(&rest).into_owned(),
        }
    }

    /// Returns the next event.
    pub fn next(&mut self) -> SentEvent {
        let (mut id, mut event) = (String::new(), String::new());
        loop {
            let line = self.line();
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.to_owned();
            }
            if let Some(text) = line.strip_prefix("event: ") {
                event = text.to_owned();
            }
            if let Some(text) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(text).expect("JSON");
                return SentEvent { id, event, data };
            }
        }
    }
}
