//! Peers that cause floods of work and of log lines.

use std::time::Duration;

use super::session::{Session, read};
use crate::common::eventually;
use crate::common::nvme_tcp_peer::{Peer, Turn};

/// Duration of an attack.
const WHILE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_refuses_event_requests_is_asked_less_and_less() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    peer.script(|ask| match ask.is_admin(0x0c) {
        true => Turn::Fail(0, 6),
        false => Turn::Right,
    });
    let attached = session.attach(&peer).await.expect("it is attached");
    let before = session.target.log().lines().count();
    tokio::time::sleep(WHILE).await;
    // Four requests at once, retried with backoff after 1 and 2 more seconds.
    let asked = peer.asked(true, 0x0c);
    assert!((8..=16).contains(&asked), "{asked} requests");
    let lines = session.target.log().lines().count() - before;
    assert!(lines <= 40, "{lines} lines:\n{}", session.target.log());
    // Once the peer answers again, the requests are retried and notices arrive.
    peer.do_right();
    peer.change(|data| data.add(2));
    eventually(
        "it can tell of a namespace",
        Duration::from_secs(8),
        async || (peer.tell_of_namespaces() > 0).then_some(()),
    )
    .await;
    session.namespaces(&attached, 2).await;
    session.detach(attached).await;
    session.unharmed("P10").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_closes_after_each_good_connection_is_connected_less_and_less() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let (attached, mut export) = session.attach_and_export(&peer).await;
    let before = (peer.connections(), session.target.log().lines().count());
    let end = std::time::Instant::now() + WHILE;
    let mut closed = 0;
    while std::time::Instant::now() < end {
        // A connected I/O queue means that the reconnect succeeded.
        if peer.connections() >= before.0 + closed * 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            peer.close_all();
            closed += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let connections = peer.connections() - before.0;
    assert!(connections <= 8, "{connections} connections in {WHILE:?}");
    let lines = session.target.log().lines().count() - before.1;
    assert!(lines <= 120, "{lines} lines:\n{}", session.target.log());
    eventually(
        "I/O goes on when the peer lets it",
        Duration::from_secs(15),
        async || read(&mut export, 0, 1).ok(),
    )
    .await;
    session.withdraw(export).await;
    session.detach(attached).await;
    session.unharmed("P16").await;
    session.target.stop();
}
