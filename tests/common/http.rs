//! An HTTP client: one connection per request, JSON response bodies.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpStream;

/// Timeout of every request: a hang is a failure of the program under test.
const BOUND: Duration = Duration::from_secs(30);

/// Read timeout of a metrics scrape.
const SCRAPE: Duration = Duration::from_secs(20);

/// An HTTP response.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; null if it is empty.
    pub body: Value,
}

/// A client of the server at this address.
#[derive(Clone, Copy)]
pub struct Http(pub SocketAddr);

impl Http {
    /// Sends a request and returns the response. Panics if the response body is not JSON.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost");
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let answer = tokio::time::timeout(BOUND, self.exchange(request)).await;
        let answer =
            answer.unwrap_or_else(|_| panic!("{method} {path} was not answered within {BOUND:?}"));
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Returns the status of a GET without reading the body, which may be an endless stream.
    pub async fn status(&self, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::get(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::new())).expect("a request");
        let asked = async {
            let stream = TcpStream::connect(self.0).await?;
            let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let status = sender.send_request(request).await?.status();
            connection.abort();
            Ok::<_, anyhow::Error>(status.as_u16())
        };
        let asked = tokio::time::timeout(BOUND, asked).await;
        let asked = asked.unwrap_or_else(|_| panic!("{path} was not answered within {BOUND:?}"));
        asked.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let stream = TcpStream::connect(self.0).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body)?
        };
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }
}

/// Scrapes /metrics; returns the response with its headers.
pub fn metrics(address: SocketAddr) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("the server accepts connections");
    let limit = stream.set_read_timeout(Some(SCRAPE));
    limit.expect("a time limit");
    let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).expect("the request is sent");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("the response is read");
    answer
}
