//! What wakes reactors that sleep: they sleep for two seconds at a time here, which no answer takes.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use spdk::cores::CoreSet;
use spdk::nvmf::{Address, listener};
use spdk::{Handle, Options};

mod common;
#[expect(dead_code, reason = "of the other tests, more than is used here")]
#[path = "../../tests/common/nvme_tcp/host.rs"]
mod host;
#[expect(dead_code, reason = "of the other tests, more than is used here")]
#[path = "../../tests/common/nvme_tcp/pdu.rs"]
mod pdu;

use common::run;
use host::{Host, Identity};
use pdu::Digests;

const NQN: &str = "nqn.2022-09.io.spdk:opi-idle";

/// The sleep, and what an answer takes at most.
const LONGEST: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_millis(500);

/// Longer than it takes until reactors sleep for long.
const PAUSE: Duration = Duration::from_millis(200);

const TIMES: usize = 3;

fn free_port() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address")
}

async fn listen(handle: &Handle, at: SocketAddr) {
    let address = Address::Tcp {
        ip: at.ip(),
        port: at.port(),
    };
    run!(handle, s => listener::add(s, NQN, &address, false).await).expect("a listener");
}

async fn export(handle: &Handle, at: SocketAddr) {
    common::disk_for_tcp(handle, "m0").await;
    common::subsystem_of(handle, NQN, "m0").await;
    listen(handle, at).await;
}

/// Connects a host with a queue on each reactor: SPDK deals them out in turn.
fn connect(at: SocketAddr) -> (Host, [Host; 2]) {
    let identity = Identity::new(at.port(), NQN);
    let admin = identity.admin(Digests::OFF);
    let io = [1, 2].map(|queue| identity.io(&admin, queue));
    (admin, io)
}

/// Expects the reactors to have slept before, and to take little time now.
async fn is_quick(handle: &Handle, what: &str, work: impl AsyncFnOnce()) {
    let asleep = || handle.reactors().into_iter().map(|of| of.asleep);
    let before: Vec<_> = asleep().collect();
    tokio::time::sleep(PAUSE).await;
    let paused = Instant::now();
    work().await;
    let took = paused.elapsed();
    assert!(took < SOON, "{what} took {took:?}");
    // A sleep is counted once it has ended: that of the pause has, where the work has ended it.
    let slept = asleep().zip(before).map(|(now, before)| now - before);
    let most = slept.max().expect("reactors");
    assert!(most > PAUSE / 2, "{what}: asleep {most:?} of {PAUSE:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_messages_and_sockets_wake_reactors() {
    let cores: CoreSet = "0,1".parse().expect("a list");
    let runtime = common::start_with(Options {
        cores,
        longest_sleep: Some(LONGEST),
        iobuf: spdk::Iobuf::for_reactors(2),
        ..common::options()
    })
    .await;
    let handle = runtime.handle();
    let at = free_port();
    export(&handle, at).await;
    // A new connection is found by a poller, when a sleep is over.
    let connected = tokio::task::spawn_blocking(move || connect(at)).await;
    let (admin, mut queues) = connected.expect("connected");

    for _ in 0..TIMES {
        is_quick(&handle, "a call", async || {
            handle.call(|_| async {}).await.expect("answered");
        })
        .await;
        // It asks the other reactor, in messages.
        let another = free_port();
        is_quick(&handle, "a listener", async || {
            listen(&handle, another).await
        })
        .await;
        for queue in &mut queues {
            is_quick(&handle, "a read", async || {
                let read = tokio::task::block_in_place(|| queue.read(1, 0, 1));
                assert_eq!(read.expect("data").len(), 512);
            })
            .await;
        }
    }
    drop((admin, queues));
    assert_eq!(runtime.stop().await, 0);
}
