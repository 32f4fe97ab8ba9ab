//! Events over HTTP, as server-sent events (SSE).

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use super::{SOON, Service, make};
use crate::common::{Http, Target};

/// A client like a browser's EventSource.
struct Source(BufReader<TcpStream>);

impl Source {
    /// Connects and waits until the stream has started.
    fn open(address: SocketAddr, query: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("the server accepts connections");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
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

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).expect("in time");
        assert!(read > 0, "the stream has ended");
        line.trim_end().to_owned()
    }

    /// Returns the next event's ID and data.
    fn next(&mut self) -> (String, Value) {
        let mut id = String::new();
        loop {
            let line = self.line();
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.to_owned();
            }
            if let Some(text) = line.strip_prefix("data: ") {
                return (id, serde_json::from_str(text).expect("JSON"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_sent_events_resume_after_the_last_event_id() {
    let target = Target::start().await;
    let client = target.client().await;
    let http = target.http;
    let mut source = Source::open(http, "", "");
    make(&client, "a").await;
    make(&client, "b").await;
    let (first, event) = source.next();
    assert_eq!(event["type"], "EVENT_TYPE_CREATED", "{event}");
    assert_eq!(
        (&event["object"], &event["revision"]),
        (&json!("nullVolumes/a"), &json!(first))
    );
    assert_eq!(source.next().1["object"], "nullVolumes/b");
    drop(source);

    let mut again = Source::open(http, "", &format!("Last-Event-ID: {first}\r\n"));
    assert_eq!(again.next().1["object"], "nullVolumes/b");
    let mut again = Source::open(http, &format!("?afterRevision={first}"), "");
    assert_eq!(again.next().1["object"], "nullVolumes/b");

    for (query, header, told) in [
        ("?afterRevision=999999999", "", "is not given yet"),
        ("?after_revision=-3", "", "is no revision"),
        ("?afterRevision=x", "", "is no revision"),
        ("?afterRevision=1&after_revision=1", "", "given twice"),
        ("?since=1", "", "only afterRevision"),
        ("", "x", "no revision"),
    ] {
        let headers = [("last-event-id", header)];
        let path = format!("/v1/events{query}");
        let answer = Http(http).send("GET", &path, &headers, Vec::new()).await;
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        let message = answer.body["message"].as_str().expect("a reason");
        assert!(message.contains(told), "{query}: {message}");
    }
    let answer = Http(http).send("POST", "/v1/events", &[], Vec::new()).await;
    assert_eq!(answer.status, 405, "{answer:?}");
    let answer = Http(http).send("HEAD", "/v1/events", &[], Vec::new()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        Service::of(&client).list(0).await.0.len(),
        2,
        "the server still answers"
    );
    // An open stream does not delay the stop.
    target.stop();
}
