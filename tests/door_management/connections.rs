//! Connections that stay silent or stop in the middle of a request or handshake.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::common::{Authority, Client, Http, Options, Target, keep_private};
use crate::{ANSWER, closed, dial};

/// Size of a crowd: above the server's connection limit, and above one address's share of it.
const MORE_THAN_ALL: usize = 1_100;
const MORE_THAN_A_SHARE: usize = 300;

/// Most connections of one address that may be open before their first request: a quarter of the
/// address's share, which is a quarter of 1,024.
const STRANGERS: usize = 64;

/// Upper bound for closing a connection without a request; the documented deadline is 10 s.
const OPENING: Duration = Duration::from_secs(15);

/// Asserts that a gRPC and an HTTP call are answered within [`ANSWER`] next to the crowd.
async fn answers_beside(target: &Target, crowd: &str) {
    let begun = Instant::now();
    let client = Client::connect(target.grpc).await.expect("a connection");
    let listed = client.call("ListNullVolumes", serde_json::json!({})).await;
    listed.unwrap_or_else(|status| panic!("{crowd}: {status}"));
    let answer = Http(target.http)
        .send("GET", "/v1/nullVolumes", &[], Vec::new())
        .await;
    assert_eq!(answer.status, 200, "{crowd}");
    let took = begun.elapsed();
    assert!(took < ANSWER, "{crowd}: calls took {took:?}");
}

fn crowd(count: usize, address: SocketAddr, says: &[u8]) -> Vec<TcpStream> {
    let connections = (0..count).filter_map(|_| {
        let mut stream = TcpStream::connect(address).ok()?;
        // The server may close the connection at once.
        let _ = stream.write_all(says);
        Some(stream)
    });
    connections.collect()
}

/// Waits until the server has handled the whole crowd and closed the connections above the limit. A
/// connection made earlier might be closed to make room for the rest of the crowd.
async fn taken_in(crowd: &[TcpStream]) {
    let is_open = |stream: &&TcpStream| {
        let mut stream: &TcpStream = stream;
        stream.set_nonblocking(true).expect("a socket");
        loop {
            // The server may send a response before it closes.
            match stream.read(&mut [0; 256]) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    };
    crate::common::eventually(
        "the crowd's excess connections are closed",
        OPENING,
        async || {
            let open = crowd.iter().filter(is_open).count();
            (open <= STRANGERS).then_some(())
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_connections_of_one_address_block_no_other_client() {
    let target = Target::start().await;
    for (what, count, address, says) in [
        ("silent at HTTP", MORE_THAN_ALL, target.http, &b""[..]),
        ("silent at gRPC", MORE_THAN_A_SHARE, target.grpc, b""),
        (
            "half a preface at gRPC",
            MORE_THAN_A_SHARE,
            target.grpc,
            b"PRI * HTTP/2.0\r\n",
        ),
        (
            "half a request at HTTP",
            MORE_THAN_A_SHARE,
            target.http,
            b"GET / HTTP/1.1\r\nhost: lo",
        ),
    ] {
        let crowd = crowd(count, address, says);
        taken_in(&crowd).await;
        answers_beside(&target, what).await;
        drop(crowd);
    }
    let begun = Instant::now();
    let connections =
        [target.grpc, target.http].map(|address| dial(address, Duration::from_secs(1)));
    for connection in &connections {
        closed(connection, begun, OPENING);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stalled_tls_handshake_is_closed() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let (certificate, key) = authority.sign("localhost");
    let files = [
        ("certificate", certificate.pem()),
        ("key", key.serialize_pem()),
        ("ca", authority.pem()),
    ];
    let paths = files.map(|(name, text)| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        keep_private(&path);
        path.display().to_string()
    });
    // The readiness probe is a client without TLS: wait for the open port instead.
    let target = Target::spawn(&Options::default().args(["--tls".to_owned(), paths.join(":")]));
    let up = async || TcpStream::connect(target.grpc).ok();
    let first = crate::common::eventually("the port is open", Duration::from_secs(30), up).await;
    let begun = Instant::now();
    let mut others = [target.grpc, target.http].map(|a| dial(a, Duration::from_secs(1)));
    for stream in &mut others {
        // The header of a TLS handshake record whose ClientHello is never completed.
        stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1]).expect("sent");
    }
    for stream in &others {
        closed(stream, begun, OPENING);
    }
    drop(first);
}
