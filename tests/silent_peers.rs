//! Peers that take a connection and say nothing, or nothing more: they hold up no path but their own,
//! and no end of the process.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Fixture, Options, Resource, Target, eventually, name_of, nqn_of, tcp_path};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// How many words a peer says before it falls silent.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Peer {
    /// None.
    Mute,
    /// That it takes the connection (NVMe/TCP, ICResp), to each that asks.
    Greets,
}

/// It listens for as long as it is kept.
struct Listening {
    port: u16,
    connected: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Listening {
    async fn new(peer: Peer) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(any).await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let connected = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connected);
        let accepting = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                open.spawn(speak(peer, stream));
            }
        });
        Self {
            port,
            connected,
            accepting: accepting.abort_handle(),
        }
    }

    /// Waits until it has been connected so often.
    async fn connected(&self, times: usize) {
        eventually("it is connected", Duration::from_secs(5), async || {
            (self.connected.load(Ordering::Relaxed) >= times).then_some(())
        })
        .await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Says what the peer says, and keeps the connection for as long as the other side does.
async fn speak(peer: Peer, mut stream: TcpStream) {
    let mut pdu = [0; 128];
    if stream.read_exact(&mut pdu).await.is_err() {
        return;
    }
    if peer == Peer::Greets {
        let mut answer = [0; 128];
        // ICResp: type, header length and whole length, and MAXH2CDATA, 128 KiB.
        (answer[0], answer[2], answer[4], answer[14]) = (1, 128, 128, 2);
        let _ = stream.write_all(&answer).await;
    }
    while stream.read(&mut pdu).await.is_ok_and(|read| read > 0) {}
}

#[tokio::test]
async fn a_silent_path_that_is_being_made_holds_up_no_other_of_its_controller() {
    let target = Target::start_with(Options::default()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    for mode in ["MULTIPATH", "FAILOVER"] {
        let silent = Listening::new(Peer::Mute).await;
        let id = mode.to_lowercase();
        let object = json!({ "multipath": format!("NVME_MULTIPATH_{mode}") });
        let remote = name_of(&of("NvmeRemoteController").created("", &id, object).await);
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
async fn a_silent_peer_that_is_being_connected_holds_up_no_stop() {
    // The second connection of one that greets is SPDK's.
    for (peer, times) in [(Peer::Mute, 1), (Peer::Greets, 2)] {
        let silent = Listening::new(peer).await;
        let target = Target::start_with(Options::default()).await;
        let client = target.client().await;
        let of = |message| Resource::new(&client, message);
        let object = json!({ "multipath": "NVME_MULTIPATH_DISABLE" });
        let remote = name_of(&of("NvmeRemoteController").created("", "r", object).await);
        let path = tcp_path(silent.port, &nqn_of("nobody"));
        let paths = of("NvmePath");
        tokio::select! {
            made = paths.create(&remote, "path", path) => panic!("{peer:?}: {made:?}"),
            () = silent.connected(times) => {}
        }
        target.stop();
    }
}
