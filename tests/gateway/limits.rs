//! The server's limits on bytes, time and connections, and its shutdown.

use std::time::{Duration, Instant};

use opi_spdk::gateway::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::served::{INVENTORY, Served, get, post};

#[tokio::test]
async fn sizes_are_limited() {
    let limits = Limits {
        body: 1000,
        headers: 8192,
        ..Limits::default()
    };
    let served = Served::start(limits, None).await;
    let body = |length: usize| post("/v1/nullVolumes", &" ".repeat(length));
    assert_eq!(served.exchange(&body(1000)).await.0, 501);
    assert_eq!(served.exchange(&body(1001)).await.0, 413);
    let header = |length: usize| {
        let long = "y".repeat(length);
        get(INVENTORY).replace(
            "host: localhost",
            &format!("host: localhost\r\nlong: {long}"),
        )
    };
    assert_eq!(served.exchange(&header(4000)).await.0, 200);
    assert_eq!(served.exchange(&header(9000)).await.0, 431);
}

#[tokio::test]
async fn an_unfinished_request_times_out() {
    let limits = Limits {
        request: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = Served::start(limits, None).await;
    let begun = Instant::now();
    let unfinished = post("/v1/nullVolumes", "{}").replace("length: 2", "length: 100");
    let (status, body) = served.exchange(&unfinished).await;
    assert_eq!(status, 504, "{body}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn connections_above_the_limit_wait() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let served = Served::start(limits, None).await;
    let mut first = TcpStream::connect(served.address).await.unwrap();
    first
        .write_all(format!("GET {INVENTORY} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
        .await
        .unwrap();
    first.read_u8().await.unwrap();
    let second = get(INVENTORY);
    let mut second = std::pin::pin!(served.exchange(&second));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut second).await;
    assert!(
        early.is_err(),
        "a second connection was served above the limit"
    );
    drop(first);
    assert_eq!(second.await.0, 200);
}

#[tokio::test]
async fn the_shutdown_closes_idle_connections() {
    let served = Served::start(Limits::default(), None).await;
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    idle.write_all(format!("GET {INVENTORY} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
        .await
        .unwrap();
    idle.read_u8().await.unwrap();
    served.stop.fire();
    let ended = tokio::time::timeout(Duration::from_secs(5), served.server).await;
    ended
        .expect("the shutdown waits for an idle connection")
        .unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn a_silent_connection_times_out() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let served = Served::start(limits, None).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    // A partial HTTP/2 preface does not count as a request.
    silent.write_all(b"PRI * HT").await.unwrap();
    let begun = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(90), silent.read(&mut [0])).await;
    let ended = ended.expect("the silent connection was not closed");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(served.exchange(&get(INVENTORY)).await.0, 200);
}

#[tokio::test]
async fn a_client_that_does_not_read_times_out() {
    let limits = Limits {
        request: Duration::from_secs(2),
        connections: 1,
        ..Limits::default()
    };
    let served = Served::start(limits, None).await;
    let deaf = TcpStream::connect(served.address).await.unwrap();
    // The responses exceed the socket buffers of both sides.
    let many = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(2000);
    let (_reader, mut writer) = deaf.into_split();
    let sent =
        tokio::time::timeout(Duration::from_secs(2), writer.write_all(many.as_bytes())).await;
    assert!(!matches!(sent, Ok(Err(_))), "{sent:?}");
    let other =
        tokio::time::timeout(Duration::from_secs(90), served.exchange(&get(INVENTORY))).await;
    assert_eq!(
        other
            .expect("the client that does not read keeps its place")
            .0,
        200
    );
}
