//! A subsystem that is changed and deleted while SPDK pauses it by itself, for a namespace whose bdev is removed.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spdk::bdev::delay::{self, Delays};
use spdk::nvmf::{Address, listener, namespace, subsystem};
use spdk::{Handle, Options, bdev};

mod common;
#[expect(dead_code, reason = "of the other tests, more than is used here")]
#[path = "../../tests/common/nvme_tcp/host.rs"]
mod host;
#[expect(dead_code, reason = "of the other tests, more than is used here")]
#[path = "../../tests/common/nvme_tcp/pdu.rs"]
mod pdu;

use common::run;
use host::{Host, Identity};
use pdu::{Command, Digests, Pdu, Sgl};

const NQN: &str = "nqn.2022-09.io.spdk:opi-stop-in-pause";

/// Latency of reads, in microseconds: the pause waits for one.
const READ_US: u32 = 2_000_000;

/// Longer than SPDK needs to begin the removal of a bdev.
const BEGIN: Duration = Duration::from_millis(300);

async fn export(handle: &Handle, at: SocketAddr) {
    common::disk_for_tcp(handle, "base").await;
    let delays = Delays {
        avg_read_us: READ_US,
        p99_read_us: READ_US,
        ..Delays::default()
    };
    run!(handle, s => delay::create(s, "slow", "base", delays).await).expect("a slow bdev");
    common::subsystem_of(handle, NQN, "slow").await;
    common::malloc(handle, "gone").await;
    run!(handle, s => namespace::add(s, NQN, &namespace::Options {
        name: "gone".to_owned(),
        bdev: "gone".to_owned(),
        ..namespace::Options::default()
    }).await)
    .expect("a namespace");
    let address = Address::Tcp {
        ip: at.ip(),
        port: at.port(),
    };
    run!(handle, s => listener::add(s, NQN, &address, false).await).expect("a listener");
}

/// Connects a host, and has it send a read.
fn reading(at: SocketAddr) -> [Host; 2] {
    let identity = Identity::new(at.port(), NQN);
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    let read = Command::io(2, io.cid(), 1, 0, 1).sgl(Sgl::Transport(512));
    io.send(&Pdu::capsule(read, &[])).expect("the read is sent");
    // Commands of a queue are executed in order: after a write, the read is in flight.
    let written = io.write(1, 8, &[7; 512]).expect("an answer");
    assert_eq!(written.status(), 0);
    [admin, io]
}

/// Removes a namespace's bdev through SPDK's JSON-RPC, which does not mind that it is in use.
fn remove(socket: &Path, method: &str, bdev: &str) -> String {
    let mut rpc = UnixStream::connect(socket).expect("SPDK's socket");
    let request =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"name":"{bdev}"}}}}"#);
    rpc.write_all(request.as_bytes())
        .expect("the request is sent");
    let mut answer = vec![0; 4096];
    let length = rpc.read(&mut answer).expect("an answer");
    answer.truncate(length);
    String::from_utf8(answer).expect("text")
}

/// SPDK resumes the subsystem once the namespace has gone. The stop is queued before that, and must not be undone by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subsystem_that_is_stopped_while_it_is_paused_stays_stopped() {
    let socket: PathBuf =
        std::env::temp_dir().join(format!("opi-spdk-stop-{}.sock", std::process::id()));
    let runtime = common::start_with(Options {
        rpc_socket: Some(socket.clone()),
        ..common::options()
    })
    .await;
    let handle = runtime.handle();
    let free = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    let at = free.expect("a free port");
    export(&handle, at).await;
    let connected = tokio::task::spawn_blocking(move || reading(at)).await;
    let hosts = connected.expect("connected");
    let gone = socket.clone();
    tokio::task::spawn_blocking(move || remove(&gone, "bdev_malloc_delete", "gone"))
        .await
        .expect("removed");

    let removal = tokio::task::spawn_blocking({
        let socket = socket.clone();
        move || remove(&socket, "bdev_delay_delete", "slow")
    });
    tokio::time::sleep(BEGIN).await;
    // Nothing in SPDK has to be changed for the mask of a namespace that has gone.
    run!(handle, s => namespace::mask(s, NQN, "gone", Some(BTreeSet::new())).await)
        .expect("a mask");
    assert!(!removal.is_finished(), "the removal waits for the read");
    assert_eq!(
        run!(handle, s => subsystem::destroy(s, NQN).await),
        Ok(()),
        "the stop has been undone"
    );
    let answer = removal.await.expect("joined");
    assert!(answer.contains("\"result\""), "{answer}");
    assert_eq!(run!(handle, s => bdev::names(s)), ["base"]);
    drop(hosts);
    assert_eq!(runtime.stop().await, 0);
}
