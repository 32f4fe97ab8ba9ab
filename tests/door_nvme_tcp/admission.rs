//! Connections before Connect: bounded memory, a deadline, bounds on their number, and admission of known hosts.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::eventually;
use crate::common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl, connections};
use crate::world::World;

/// Deadline from accept to Connect, and the tolerance for the target's poll period.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);
pub const LATE: Duration = Duration::from_secs(2);

/// Bounds of unadmitted connections (`OPI_NVME_TCP_UNADMITTED_...`): per address and in total.
pub const PER_ADDRESS: usize = 256;
const IN_ALL: usize = 1024;

/// Timeout for a known host to connect: hosts retry when their connection is displaced, which may happen while
/// strangers of the same address connect faster than the host does.
const GETS_IN: Duration = Duration::from_secs(5);

/// Connects an admin and an I/O queue and writes a block.
fn connect(identity: &Identity) -> std::io::Result<u16> {
    let mut admin = identity.dial()?;
    admin.negotiate(Digests::OFF)?;
    admin.connect(identity, 0, 0xffff)?;
    admin.enable()?;
    let mut io = identity.dial()?;
    io.negotiate(Digests::OFF)?;
    io.connect(identity, 1, admin.cntlid)?;
    Ok(io.write(1, 0, &[1; 512])?.status())
}

/// Asserts that known hosts can connect beside these strangers.
pub fn known_hosts_get_in(identity: &Identity, what: &str) {
    for n in 0..4 {
        let begin = Instant::now();
        let identity = identity.clone().named(&format!("known-{n}"));
        let status = loop {
            let attempt = connect(&identity);
            let took = begin.elapsed();
            assert!(
                took < GETS_IN,
                "{what}: a known host waited {took:?}: {attempt:?}"
            );
            if let Ok(status) = attempt {
                break status;
            }
        };
        assert_eq!(status, 0, "{what}: a write");
    }
}

/// Stops a stranger's thread, also when its test fails: otherwise it would starve later tests of the core.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn silent_strangers_keep_no_host_out() {
    let mut world = World::of_two_reactors().await;
    let before = world.target.resident_mib();
    let silent: Vec<_> = (0..2_000)
        .map(|_| world.identity.dial().expect("a connection"))
        .collect();
    known_hosts_get_in(&world.identity, "2,000 silent connections");
    let grown = world.target.resident_mib().saturating_sub(before);
    assert!(grown <= 16, "{grown} MiB for 2,000 silent connections");
    eventually("their number is bounded", TIME_LIMIT / 2, async || {
        (connections(&world.target) <= PER_ADDRESS + 8).then_some(())
    })
    .await;
    drop(silent);
    world.unharmed("silent connections").await;
}

/// One thread connects, negotiates and reconnects as fast as it can.
#[tokio::test]
async fn busy_strangers_keep_no_host_out() {
    let mut world = World::new().await;
    let identity = world.identity.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let stop = StopOnDrop(stop);
    let busy = std::thread::spawn(move || {
        let mut held = std::collections::VecDeque::new();
        while !stopped.load(Ordering::Relaxed) {
            let Ok(mut host) = identity.dial() else {
                continue;
            };
            let _ = host.send(&Pdu::ic_req(Digests::OFF));
            held.push_back(host);
            if held.len() > 2 * PER_ADDRESS {
                held.pop_front();
            }
        }
    });
    for _ in 0..8 {
        known_hosts_get_in(&world.identity, "a busy stranger");
        world.bystander.verify();
    }
    drop(stop);
    busy.join().expect("the busy stranger");
    world.unharmed("a busy stranger").await;
}

/// From many addresses the total bound applies, and a known host can still connect.
#[tokio::test]
async fn strangers_of_many_addresses_keep_no_host_out() {
    let mut world = World::of_two_reactors().await;
    let address = world.identity.address;
    let mut silent = Vec::new();
    for n in 2..8 {
        for _ in 0..PER_ADDRESS - 6 {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, n), 0));
            socket.bind(from).expect("an address of loopback");
            silent.push(socket.connect(address).await.expect("a connection"));
        }
    }
    assert!(silent.len() > IN_ALL);
    known_hosts_get_in(&world.identity, "strangers of many addresses");
    eventually("their number is bounded", TIME_LIMIT / 2, async || {
        (connections(&world.target) <= IN_ALL + 8).then_some(())
    })
    .await;
    drop(silent);
    world.unharmed("strangers of many addresses").await;
}

/// The same deadline applies to every way of being slow.
#[tokio::test]
async fn whoever_has_not_connected_in_time_is_closed() {
    let mut world = World::new().await;
    let data = world.identity.connect_data(0xffff);
    let connect = Pdu::capsule(Command::connect(1, 0, 31, Sgl::InCapsule(1024)), &data);
    let whole = connect.bytes(Digests::OFF);
    let begin = Instant::now();
    let mut slow: Vec<(&str, Host)> = Vec::new();
    slow.push(("silent", world.identity.dial().expect("a connection")));
    let mut part = world.identity.dial().expect("a connection");
    part.send_bytes(&[0; 9]).expect("a part of ICReq");
    slow.push(("a part of ICReq", part));
    slow.push(("ICReq alone", world.stranger(Digests::OFF)));
    for (what, length) in [
        ("a part of a header", 40),
        ("a header", 72),
        ("a part of its data", 500),
    ] {
        let mut host = world.stranger(Digests::OFF);
        host.send_bytes(&whole[..length]).expect("a part");
        slow.push((what, host));
    }
    let mut by_r2t = world.stranger(Digests::OFF);
    let command = Command::connect(1, 0, 31, Sgl::Transport(1024));
    by_r2t.send(&Pdu::capsule(command, &[])).expect("a capsule");
    by_r2t.receive().expect("an R2T");
    slow.push(("no answer to its R2T", by_r2t));
    let mut unknown = world.stranger(Digests::OFF);
    let mut wrong = data.clone();
    wrong[256..280].fill(b'x');
    let refused = unknown.call(Command::connect(1, 0, 31, Sgl::InCapsule(1024)), &wrong);
    assert_ne!(refused.expect("an answer").status(), 0);
    slow.push(("refused", unknown));
    let (mut admin, mut io) = world.admitted(Digests::OFF);
    for (what, host) in &mut slow {
        let left = (TIME_LIMIT + LATE).saturating_sub(begin.elapsed());
        let ended = host.closed_within(left.max(Duration::from_millis(100)));
        assert!(
            ended.is_ok(),
            "{what}: still open after {:?}",
            begin.elapsed()
        );
        let took = begin.elapsed();
        assert!(
            took > TIME_LIMIT / 2,
            "{what}: closed after {took:?} already"
        );
    }
    let keep_alive = admin.call(Command::new(0x18, 900), &[]);
    assert_eq!(
        keep_alive.expect("an answer").status(),
        0,
        "who is admitted stays"
    );
    assert_eq!(io.write(1, 0, &[1; 512]).expect("a write").status(), 0);
    drop((admin, io));
    world.unharmed("slow strangers").await;
}
