//! Peers that cause floods of work and of log lines.

use std::time::{Duration, Instant};

use super::session::{Attached, END, Session, read};
use crate::common::nvme_tcp_peer::{NQN, Peer, Turn};
use crate::common::{eventually, name_of, remote_controller, tcp_path};

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
    let end = Instant::now() + WHILE;
    let mut closed = 0;
    while Instant::now() < end {
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

/// Attaches a controller with three paths, of which one at a time is connected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_well_is_tried_at_once_after_short_connections_of_others() {
    let mut session = Session::alone().await;
    let peers = [Peer::start(), Peer::start(), Peer::start()];
    let controller = remote_controller(&session.client, "three", "FAILOVER").await;
    let mut paths = Vec::new();
    for (number, peer) in peers.iter().enumerate() {
        let path = tcp_path(peer.port, NQN);
        let created = session.of("NvmePath");
        let id = format!("p{number}");
        paths.push(name_of(&created.created(&controller, &id, path).await));
    }
    let attached = Attached {
        id: "three".to_owned(),
        controller,
        path: paths.remove(0),
    };
    let mut export = session.export(&attached).await;
    let mut took = Duration::MAX;
    for number in 0..2 {
        let before = peers[number + 1].connections();
        let begun = Instant::now();
        peers[number].close_all();
        eventually("the next path is connected", END, async || {
            // The admin queue and an I/O queue.
            (peers[number + 1].connections() >= before + 2).then_some(())
        })
        .await;
        took = begun.elapsed();
        eventually("it takes I/O", END, async || {
            read(&mut export, 0, 1).ok().map(|_| ())
        })
        .await;
    }
    assert!(took < Duration::from_millis(1500), "{took:?}");
    session.withdraw(export).await;
    for path in &paths {
        session.ends("NvmePath", path).await;
    }
    session.detach(attached).await;
    session.unharmed("short connections").await;
    session.target.stop();
}
