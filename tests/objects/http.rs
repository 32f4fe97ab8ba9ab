//! Events over HTTP, as server-sent events (SSE).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{
    AddressFamily, SocketType, connect, socket, sockopt::set_socket_recv_buffer_size,
};
use serde_json::{Value, json};
use tonic::Code;

use super::watch::many_events;
use super::{SOON, Service, make};
use crate::common::{EventSource, Http, Scrape, SentEvent, Target, eventually};

/// Clients that never read.
const SILENT: usize = 40;

/// Documented time for which the buffers of a watcher that does not read may be full.
const FULL: Duration = Duration::from_secs(20);

/// Receive buffer and segment size of a client that reads little: with segments of this size the kernel grants the
/// server's side of the connection some 40 KB too, a hundred events, instead of megabytes.
const BUFFER: usize = 4096;
const SEGMENT: u32 = 536;

/// Most bytes of events that the buffers of one connection may hold.
const BUFFERED: usize = 256 << 10;

/// Connects a client with small buffers on both sides.
fn open_small(address: SocketAddr) -> EventSource {
    let stream = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    // Before the connection is made: both sides choose their buffers then.
    set_socket_recv_buffer_size(&stream, BUFFER).expect("a buffer");
    setsockopt(&stream, sockopt::TcpMaxSeg, &SEGMENT).expect("a segment size");
    connect(&stream, &address).expect("the server accepts connections");
    EventSource::over(stream.into(), "", "Connection: close\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_sent_events_resume_after_the_last_event_id() {
    let target = Target::start().await;
    let client = target.client().await;
    let http = target.http;
    let mut source = EventSource::open(http, "", "");
    make(&client, "a").await;
    make(&client, "b").await;
    let SentEvent {
        id: first,
        data: event,
        ..
    } = source.next();
    assert_eq!(event["type"], "EVENT_TYPE_CREATED", "{event}");
    assert_eq!(
        (&event["object"], &event["revision"]),
        (&json!("nullVolumes/a"), &json!(first))
    );
    assert_eq!(source.next().data["object"], "nullVolumes/b");
    drop(source);

    let mut again = EventSource::open(http, "", &format!("Last-Event-ID: {first}\r\n"));
    assert_eq!(again.next().data["object"], "nullVolumes/b");
    let mut again = EventSource::open(http, &format!("?afterRevision={first}"), "");
    assert_eq!(again.next().data["object"], "nullVolumes/b");

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

/// Reads a line now and then until `done`, and then all that is left.
fn read_slowly(mut source: EventSource, done: &AtomicBool) -> String {
    while !done.load(Ordering::Relaxed) {
        source.line();
        std::thread::sleep(Duration::from_millis(20));
    }
    source.rest()
}

/// Returns the number of open connections of clients, with that of the scrape itself, and the resident memory.
async fn connections_and_memory(target: &Target) -> (usize, f64) {
    let scrape = Scrape::of(target).await;
    let connections = scrape.value("opi_spdk_connections", &[("door", "management")]);
    let memory = scrape.value("process_resident_memory_bytes", &[]);
    (connections as usize, memory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_never_read_cost_little_and_are_closed() {
    /// More than the kept events and the buffers of all connections need: a queue of all events for each connection
    /// would be some 80 MB.
    const MEMORY: f64 = (32 << 20) as f64;
    /// A call that waited for a watcher would take 20 s.
    const CALL: Duration = Duration::from_secs(5);
    let target = Target::start().await;
    let client = target.client().await;
    let mut good = Service::of(&client).watch(None).await.expect("a watch");
    let slow = open_small(target.http);
    let (before, memory) = connections_and_memory(&target).await;
    let silent: Vec<EventSource> = (0..SILENT).map(|_| open_small(target.http)).collect();
    eventually("all are connected", SOON, async || {
        let (open, _) = connections_and_memory(&target).await;
        (open == before + SILENT).then_some(())
    })
    .await;

    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let slow = tokio::task::spawn_blocking(move || read_slowly(slow, &is_done));
    let begun = Instant::now();
    let longest = many_events(&client, &mut good).await;
    assert!(longest < CALL, "a call took {longest:?}");
    let (_, now) = connections_and_memory(&target).await;
    assert!(now - memory < MEMORY, "{memory} bytes became {now}");

    // Who reads slowly, but reads, stays connected and is told that it has missed events.
    done.store(true, Ordering::Relaxed);
    let slow = slow.await.expect("no panic");
    let (_, end) = slow.split_once("event: end").expect("the end is told");
    let end = end.lines().find_map(|line| line.strip_prefix("data: "));
    let end: Value = serde_json::from_str(end.expect("a reason")).expect("JSON");
    assert_eq!(end["code"], Code::OutOfRange as i32, "{end}");
    let message = end["message"].as_str().expect("a message");
    assert!(message.contains("read too slowly"), "{message}");

    // Who never reads is closed.
    eventually("the connections are closed", FULL * 2, async || {
        let (open, _) = connections_and_memory(&target).await;
        (open < before).then_some(())
    })
    .await;
    assert!(begun.elapsed() >= FULL, "after {:?}", begun.elapsed());
    for source in silent {
        let told = tokio::task::block_in_place(|| source.rest());
        assert!(told.len() < BUFFERED, "{} bytes were sent", told.len());
        assert!(told.contains("data: ") && !told.contains("event: end"));
    }
    make(&client, "afterwards").await;
    target.stop();
}
