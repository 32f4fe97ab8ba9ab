//! Peers that accept a connection and fall silent, at once or later: they delay only their own path, and
//! neither other paths nor the stop.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    Fixture, Initiator, Options, Relay, Resource, Target, eventually, malloc, name_of, namespace,
    nqn_of, remote_controller, subsystem, tcp_controller, tcp_path,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tonic::Code;

/// The behaviour of a peer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Peer {
    /// Never sends anything.
    Mute,
    /// Answers every ICReq with ICResp, then falls silent.
    Greets,
    /// Answers the first connection with ICResp; relays later ones to the target at this port once
    /// released.
    GoesOn(u16),
}

/// A listening peer; stops on drop.
struct Listening {
    port: u16,
    connected: Arc<AtomicUsize>,
    let_go_on: watch::Sender<bool>,
    accepting: AbortHandle,
}

impl Listening {
    async fn new(peer: Peer) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(any).await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let connected = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connected);
        let (let_go_on, may_go_on) = watch::channel(false);
        let accepting = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let peer = match (peer, count.fetch_add(1, Ordering::Relaxed)) {
                    (Peer::GoesOn(_), 0) => Peer::Greets,
                    _ => peer,
                };
                open.spawn(speak(peer, stream, may_go_on.clone()));
            }
        });
        Self {
            port,
            connected,
            let_go_on,
            accepting: accepting.abort_handle(),
        }
    }

    /// Waits until `times` connections have been accepted.
    async fn connected(&self, times: usize) {
        eventually(
            "the peer is connected",
            Duration::from_secs(5),
            async || (self.connected.load(Ordering::Relaxed) >= times).then_some(()),
        )
        .await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Behaves like the peer until the other side closes the connection.
async fn speak(peer: Peer, mut stream: TcpStream, mut may_go_on: watch::Receiver<bool>) {
    if let Peer::GoesOn(port) = peer {
        let let_go = may_go_on.wait_for(|may| *may).await.is_ok();
        if let (true, Ok(mut to)) = (let_go, TcpStream::connect(("127.0.0.1", port)).await) {
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
        }
        return;
    }
    let mut pdu = [0; 128];
    if stream.read_exact(&mut pdu).await.is_err() {
        return;
    }
    if peer == Peer::Greets {
        let mut answer = [0; 128];
        // ICResp: type, HLEN, PLEN, and MAXH2CDATA (128 KiB).
        (answer[0], answer[2], answer[4], answer[14]) = (1, 128, 128, 2);
        let _ = stream.write_all(&answer).await;
    }
    while stream.read(&mut pdu).await.is_ok_and(|read| read > 0) {}
}

#[tokio::test]
async fn creating_a_silent_path_blocks_no_other_path_of_its_controller() {
    let target = Target::start_with(Options::default()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    for mode in ["MULTIPATH", "FAILOVER"] {
        let silent = Listening::new(Peer::Mute).await;
        let id = mode.to_lowercase();
        let remote = remote_controller(&client, &id, mode).await;
        let paths = of("NvmePath");
        let others = async {
            silent.connected(1).await;
            let path = tcp_path(export.port, &export.nqn);
            let path = name_of(&paths.created(&remote, "works", path).await);
            paths.stats(&path).await;
            paths.deleted(&path).await;
        };
        let path = tcp_path(silent.port, &export.nqn);
        tokio::select! {
            made = paths.create(&remote, "silent", path) => panic!("{mode}: {made:?} came first"),
            () = others => {}
        }
    }
    target.stop();
    peer.stop();
}

#[tokio::test]
async fn connecting_to_a_silent_peer_does_not_block_the_stop() {
    // The first connection is the program's probe, the second one SPDK's.
    for (peer, times) in [(Peer::Mute, 1), (Peer::Greets, 2)] {
        let silent = Listening::new(peer).await;
        let target = Target::start_with(Options::default()).await;
        let client = target.client().await;
        let of = |message| Resource::new(&client, message);
        let remote = remote_controller(&client, "r", "DISABLE").await;
        let path = tcp_path(silent.port, &nqn_of("nobody"));
        let paths = of("NvmePath");
        tokio::select! {
            made = paths.create(&remote, "path", path) => panic!("{peer:?}: {made:?}"),
            () = silent.connected(times) => {}
        }
        target.stop();
    }
}

/// SPDK's NVMe module has finished by then and would not detach what is attached later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_answers_during_the_stop_does_not_block_it() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let target = Target::start_with(Options::default().in_dir(Arc::clone(&dir))).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let late = Listening::new(Peer::GoesOn(export.port)).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let remote = remote_controller(&client, "r", "DISABLE").await;
    let paths = of("NvmePath");
    tokio::select! {
        made = paths.create(&remote, "path", tcp_path(late.port, &export.nqn)) => panic!("{made:?}"),
        () = late.connected(2) => {}
    }
    // The stop drains calls in flight, logs the cost of configuration and stops SPDK, all without this
    // peer.
    let log = dir.path().join("log");
    let stopped = tokio::task::spawn_blocking(move || target.stop());
    let soon = Duration::from_secs(4);
    eventually("the stop of SPDK has started", soon, async || {
        let log = std::fs::read_to_string(&log).ok()?;
        log.contains("what configuration cost").then_some(())
    })
    .await;
    // The race under test: answer within the period in which SPDK used to wait for the peer.
    tokio::time::sleep(Duration::from_millis(200)).await;
    late.let_go_on.send_replace(true);
    stopped.await.expect("the target stops");
    peer.stop();
}

#[tokio::test]
async fn moving_a_path_to_a_silent_peer_blocks_no_other_path_of_its_controller() {
    let target = Target::start_with(Options::default()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let (_, second) = tcp_controller(&export.client, &export.subsystem).await;
    let silent = Listening::new(Peer::Mute).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let remote = remote_controller(&client, "r", "MULTIPATH").await;
    let paths = of("NvmePath");
    for (id, port) in [("a", export.port), ("b", second)] {
        paths
            .created(&remote, id, tcp_path(port, &export.nqn))
            .await;
    }
    let over = subsystem(&client, "s", json!({})).await;
    let [a, b] = ["a", "b"].map(|id| format!("{remote}/nvmePaths/{id}"));
    let others = async {
        silent.connected(1).await;
        namespace(&client, &over, "rn1", json!({})).await;
        paths.deleted(&a).await;
    };
    let elsewhere = tcp_path(silent.port, &export.nqn);
    tokio::select! {
        changed = paths.update(&b, elsewhere, None) => panic!("{changed:?} came first"),
        () = others => {}
    }
    target.stop();
    peer.stop();
}

#[tokio::test]
async fn invalid_paths_are_rejected_before_waiting_for_a_silent_peer() {
    let target = Target::start_with(Options::default()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let relay = Relay::to(export.port).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let paths = of("NvmePath");
    let path = || tcp_path(relay.port, &export.nqn);
    let one = remote_controller(&client, "one", "DISABLE").await;
    let two = remote_controller(&client, "two", "DISABLE").await;
    paths.created(&one, "path", path()).await;
    relay.fall_silent(true);
    let begun = Instant::now();
    paths
        .refused(&two, "path", path(), Code::AlreadyExists)
        .await;
    let mute = Listening::new(Peer::Mute).await;
    let second = tcp_path(mute.port, &export.nqn);
    paths
        .refused(&one, "second", second, Code::FailedPrecondition)
        .await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    target.stop();
    peer.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_silent_peer_serves_and_the_path_reconnects() {
    /// Above the timeout of one attempt (10 s), which others wait for, plus a margin for a busy machine.
    const OPEN: Duration = Duration::from_secs(25);
    let mut target = Target::start_with(Options::default()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let relay = Relay::to(export.port).await;
    let client = target.client().await;
    let remote = remote_controller(&client, "remote", "DISABLE").await;
    let paths = Resource::new(&client, "NvmePath");
    let path = paths.created(&remote, "path", tcp_path(relay.port, &export.nqn));
    let path = name_of(&path.await);
    let far = subsystem(&client, "far", json!({})).await;
    let disk = namespace(&client, &far, "remoten1", json!({})).await;
    let (_, port) = tcp_controller(&client, &far).await;
    let near = Fixture::tcp(&target, 1).await;
    relay.fall_silent(true);
    target.kill();

    let begun = Instant::now();
    let again = Target::start_with(Options::default().after(&target)).await;
    let took = begun.elapsed();
    assert!(took < OPEN, "{took:?}");
    let client = again.client().await;
    let (near, data) = (near.initiator(), again.scratch().join("data"));
    let read = near.copy_out(again.scratch(), 1, 64, &data).await;
    read.expect("a local volume is served");
    malloc(&client, "other", 1).await;
    let paths = Resource::new(&client, "NvmePath");
    let stats = json!({ "name": path });
    let stats = client.call(&paths.method("Stats"), stats).await;
    let status = stats.expect_err("the path has no statistics");
    assert!(status.message().contains("it is retried"), "{status}");
    paths.get(&path).await.expect("the path's record is kept");

    relay.fall_silent(false);
    let namespaces = Resource::new(&client, "NvmeNamespace");
    eventually(
        "the remote volume is online",
        Duration::from_secs(30),
        async || {
            let found = namespaces.get(&disk).await.ok()?;
            (found["status"]["oper_state"] == "OPER_STATE_ONLINE").then_some(())
        },
    )
    .await;
    let far = Initiator::tcp(port, &nqn_of("far"));
    let read = far.copy_out(again.scratch(), 1, 64, &data).await;
    read.expect("the remote volume is served");
    paths.stats(&path).await;
    again.stop();
    peer.stop();
}
