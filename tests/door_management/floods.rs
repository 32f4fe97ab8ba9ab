//! Limits on the memory and the log lines that one client can cause.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::Request;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::common::{Target, eventually};
use crate::{ANSWER, dial};

const CONNECTIONS: usize = 40;
/// Most concurrent requests of a connection.
const STREAMS: usize = 100;

/// Most memory that a flood may take, MiB: incomplete requests and unread responses share 64 MiB, and
/// each connection and call has buffers in addition. Without limits the first flood takes more than
/// 1,000 MiB.
const BOUND: u64 = 160;

/// Most log lines about incomplete or excess calls: one per 10 s, which counts the suppressed ones.
const LINES: usize = 12;

/// Returns the target's resident memory, MiB.
fn resident(target: &Target) -> u64 {
    let path = format!("/proc/{}/status", target.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(path).expect("the target runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("a size")
        / 1024
}

/// A gRPC request of which only the first part is sent.
fn half(path: &str, address: SocketAddr, part: Bytes) -> Request<Body> {
    let first = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(part))]);
    let body = first.chain(futures_util::stream::pending());
    Request::builder()
        .method("POST")
        .uri(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(body.boxed()))
        .expect("a request")
}

type Body = StreamBody<futures_util::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// Opens connections from an address of its own, each with as many requests as allowed, and calls
/// `during` once all requests are sent.
async fn flood(
    target: &Target,
    window: u32,
    request: impl Fn() -> Request<Body>,
    during: impl AsyncFnOnce(),
) {
    let mut open = JoinSet::new();
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 2], 0).into()).expect("loopback");
        let stream = socket
            .connect(target.grpc)
            .await
            .expect("the target accepts connections");
        let handshake = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.expect("HTTP/2");
        open.spawn(async move {
            let _ = connection.await;
        });
        for _ in 0..STREAMS {
            if sender.ready().await.is_err() {
                break;
            }
            let answer = sender.send_request(request());
            open.spawn(async move {
                // The response is kept but not read.
                if let Ok(answer) = answer.await {
                    std::future::pending::<()>().await;
                    drop(answer);
                }
            });
        }
        senders.push(sender);
    }
    during().await;
    drop(senders);
    open.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn call_floods_use_bounded_memory_and_release_it() {
    let target = Target::start().await;
    let client = target.client().await;
    for n in 0..200 {
        let request = json!({
            "null_volume_id": format!("a-volume-with-a-long-name-{n}"),
            "null_volume": { "block_size": 512, "blocks_count": 64 },
        });
        client.ok("CreateNullVolume", request).await;
    }
    let before = resident(&target);
    let service = "/opi_api.storage.v1.NullVolumeService";
    // A gRPC message of 1 MiB of which 48 KiB are sent.
    let mut part = vec![0, 0, 0x10, 0, 0];
    part.resize(48 << 10, b'x');
    let part = Bytes::from(part);
    let (create, list) = (
        format!("{service}/CreateNullVolume"),
        format!("{service}/ListNullVolumes"),
    );
    let reflect = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let empty = Bytes::from_static(&[0, 0, 0, 0, 0]);
    let lines = || target.log().matches("CreateNullVolume").count();
    let lines_before = lines();
    for (what, window, path, part) in [
        ("half-sent requests", 1 << 20, create.as_str(), part),
        ("unread answers", 0, list.as_str(), empty.clone()),
        ("reflection without an end", 1 << 20, reflect, empty),
    ] {
        let mut most = 0;
        let request = || half(path, target.grpc, part.clone());
        flood(&target, window, request, async || {
            for _ in 0..10 {
                most = most.max(resident(&target));
                let begun = std::time::Instant::now();
                client
                    .ok("ListNullVolumes", json!({ "page_size": 1 }))
                    .await;
                assert!(begun.elapsed() < ANSWER, "{what}: {:?}", begun.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        assert!(most < before + BOUND, "{what}: {before} to {most} MiB");
        println!("{what}: {before} to {most} MiB");
    }
    let soon = Duration::from_secs(30);
    eventually("the memory is released", soon, async || {
        (resident(&target) < before + BOUND / 2).then_some(())
    })
    .await;
    let more = lines() - lines_before;
    assert!(
        more <= LINES,
        "{more} log lines about incomplete calls, more than {LINES}"
    );
    target.stop();
}

/// HEADERS with END_STREAM (RFC 9113, 6.2), followed by RST_STREAM (6.4).
fn opened_and_reset(stream: u32) -> Vec<u8> {
    // HPACK, static table: POST, http, /; and a literal :authority of one byte.
    let block = [0x83, 0x86, 0x84, 0x41, 1, b'x'];
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short");
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    // Flags END_STREAM and END_HEADERS; error code CANCEL.
    [frame(1, 5, &block), frame(3, 0, &8_u32.to_be_bytes())].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rapid_resets_close_the_connection_and_log_a_few_lines() {
    const ATTACKS: usize = 60;
    let target = Target::start().await;
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // An empty SETTINGS frame.
    attack.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    attack.extend((0..2000).flat_map(|n| opened_and_reset(2 * n + 1)));
    for _ in 0..ATTACKS {
        let mut stream = dial(target.grpc, ANSWER);
        // The server closes the connection in the middle of the attack.
        let _ = stream.write_all(&attack);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    let client = target.client().await;
    client.ok("ListNullVolumes", json!({})).await;
    let log = target.log();
    let lines = log
        .lines()
        .filter(|line| line.contains(" WARN ") || line.contains("ERROR"));
    let lines: Vec<&str> = lines.collect();
    assert!(
        (1..ATTACKS / 4).contains(&lines.len()),
        "{} lines:\n{log}",
        lines.len()
    );
    target.stop();
}
