//! Connections to the discovery service, which answers any host: they stay within the bounds of connections that are
//! not admitted, and hosts that stay connected to be told of changes are served for as long as they send Keep Alive.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::admission::{LATE, PER_ADDRESS, TIME_LIMIT, known_hosts_get_in};
use crate::common::nvme_tcp::{
    Command, DISCOVERY, Digests, Host, Identity, Pdu, Sgl, connections, flag, kind, log,
};
use crate::common::{Fixture, eventually};
use crate::world::World;

/// Growth of the process by the connections that stay of those of one address, and by the hosts beside them.
const GROWTH_MIB: u64 = 24;

/// The Keep Alive timer of a host that stays connected, in milliseconds: as Linux asks for.
const KATO: u32 = 30_000;

/// Opcodes of admin commands.
const GET_LOG_PAGE: u8 = 0x02;
const IDENTIFY: u8 = 0x06;
const SET_FEATURES: u8 = 0x09;
const EVENT_REQUEST: u8 = 0x0c;
const KEEP_ALIVE: u8 = 0x18;

/// Asynchronous Event Requests that the target takes.
const EVENTS: u16 = 4;

/// A host of the discovery service on the port of the world's subsystem.
fn discoverer(world: &World) -> Identity {
    Identity {
        subnqn: DISCOVERY.into(),
        ..world.identity.clone()
    }
}

/// Connects to the discovery service and sends nothing else.
fn connects(identity: &Identity) -> std::io::Result<Host> {
    let mut host = identity.dial()?;
    host.negotiate(Digests::OFF)?;
    host.connect(identity, 0, 0xffff)?;
    Ok(host)
}

/// Connects as a host that stays: with a Keep Alive timer and a request for events. Returns that request's ID.
fn stays(identity: &Identity) -> (Host, u16) {
    let mut host = identity.negotiated(Digests::OFF);
    let cid = host.cid();
    let connect = Command::connect(cid, 0, 31, Sgl::InCapsule(1024)).cdw(12, KATO);
    let answer = host.call(connect, &identity.connect_data(0xffff));
    assert_eq!(answer.expect("an answer").status(), 0, "Connect");
    host.enable().expect("the controller becomes ready");
    let cid = host.cid();
    let changes = Command::new(SET_FEATURES, cid)
        .cdw(10, 0x0b)
        .cdw(11, 1 << 31);
    assert_eq!(host.call(changes, &[]).expect("an answer").status(), 0);
    let event = host.cid();
    let request = Pdu::capsule(Command::new(EVENT_REQUEST, event), &[]);
    host.send(&request).expect("a request");
    (host, event)
}

fn keeps_alive(host: &mut Host) {
    let cid = host.cid();
    let answer = host.call(Command::new(KEEP_ALIVE, cid), &[]);
    assert_eq!(answer.expect("it is still connected").status(), 0);
}

/// Counts the connections that the target has not closed.
fn open(hosts: &[Host]) -> usize {
    let is_open = |host: &&Host| {
        let stream = host.stream();
        stream.set_nonblocking(true).expect("it is ours");
        matches!(stream.peek(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock)
    };
    hosts.iter().filter(is_open).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_connect_to_the_discovery_service_keep_no_host_out() {
    let mut world = World::of_two_reactors().await;
    let (mut persistent, event) = stays(&discoverer(&world));
    let before = world.target.resident_mib();
    let stranger = discoverer(&world).named("stranger");
    let mut silent = Vec::new();
    for n in 0..2_000 {
        silent.push(connects(&stranger).expect("it answers any host"));
        if n % 500 == 499 {
            keeps_alive(&mut persistent);
            known_hosts_get_in(&world.identity, "strangers of the discovery service");
        }
    }
    let last = Instant::now();
    let grown = world.target.resident_mib().saturating_sub(before);
    println!("{grown} MiB for 2,000 connections to the discovery service");
    assert!(grown <= GROWTH_MIB, "{grown} MiB for 2,000 connections");
    eventually("their number is bounded", TIME_LIMIT / 2, async || {
        (connections(&world.target) <= PER_ADDRESS + 8).then_some(())
    })
    .await;
    eventually(
        "they have 10 s for a command",
        TIME_LIMIT + LATE,
        async || (open(&silent) == 0).then_some(()),
    )
    .await;
    assert!(last.elapsed() > TIME_LIMIT / 2, "{:?}", last.elapsed());

    // Who sends Keep Alive has stayed, and is told of what changes.
    keeps_alive(&mut persistent);
    let _more = Fixture::tcp(&world.target, 4).await;
    let (told, _) = persistent.completion(event, &[]).expect("an event");
    assert_eq!(told.u32(8), 0x0070_f002, "Discovery Log Page Change");
    assert!(log(&mut persistent).len() >= 2);
    drop((persistent, silent));
    world.unharmed("strangers of the discovery service").await;
}

/// Strangers that do send commands: those that were silent the longest give way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_the_discovery_service_give_way_to_each_other_alone() {
    let mut world = World::new().await;
    let (mut persistent, _) = stays(&discoverer(&world));
    let stranger = discoverer(&world).named("stranger");
    let mut served = Vec::new();
    for n in 0..PER_ADDRESS + 64 {
        served.push(stranger.admin(Digests::OFF));
        if n % 64 == 0 {
            keeps_alive(&mut persistent);
        }
    }
    keeps_alive(&mut persistent);
    known_hosts_get_in(&world.identity, "hosts of the discovery service");
    eventually("the first of them gave way", TIME_LIMIT / 2, async || {
        let (first, last) = served.split_at(64);
        (open(first) == 0 && open(last) <= PER_ADDRESS).then_some(())
    })
    .await;

    // Sockets that say nothing displace none of them, once they are no longer most.
    let address = world.identity.address;
    let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 9), 0));
    let mut elsewhere = Vec::new();
    for n in 0..=PER_ADDRESS + 64 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(from).expect("an address of loopback");
        let stream = socket.connect(address).await.expect("a connection");
        let stream = stream.into_std().expect("a socket");
        stream.set_nonblocking(false).expect("it is ours");
        let mut host = Host::over(stream).expect("a host");
        if n < 8 {
            host.negotiate(Digests::OFF).expect("ICResp");
            host.connect(&stranger, 0, 0xffff).expect("Connect");
            host.enable().expect("the controller becomes ready");
        }
        elsewhere.push(host);
    }
    eventually("silent ones gave way", TIME_LIMIT / 2, async || {
        (open(&elsewhere) <= PER_ADDRESS).then_some(())
    })
    .await;
    assert_eq!(open(&elsewhere[..8]), 8, "those that are served");
    drop((persistent, served, elsewhere));
    world.unharmed("hosts of the discovery service").await;
}

/// The connection has a few requests: further commands wait until one of them is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_discovery_service_answers_as_many_commands_as_the_queue_has() {
    let mut world = World::new().await;
    for digests in [Digests::OFF, Digests::BOTH] {
        let mut host = discoverer(&world).admin(digests);
        let mut commands = Vec::new();
        for cid in 1000..1000 + EVENTS {
            let event = Command::new(EVENT_REQUEST, cid);
            commands.push(Pdu::capsule(event, &[]));
        }
        let mut expected = Vec::new();
        for n in 0..24_u16 {
            let cid = 2000 + n;
            let page = Command::new(GET_LOG_PAGE, cid).cdw(10, (4096 / 4 - 1) << 16 | 0x70);
            let page = page.sgl(Sgl::Transport(4096));
            let identify = Command::new(IDENTIFY, cid)
                .cdw(10, 1)
                .sgl(Sgl::Transport(4096));
            // An opcode with data from the host that this service does not know, inside the capsule.
            let unknown = Command::new(0x21, cid).sgl(Sgl::InCapsule(4096));
            let (command, data, status): (_, &[u8], _) = match n % 4 {
                0 => (page, &[], 0),
                1 => (identify, &[], 0),
                2 => (unknown, &[0x5a; 4096], 1),
                _ => (Command::new(KEEP_ALIVE, cid), &[], 0),
            };
            commands.push(Pdu::capsule(command, data));
            expected.push((cid, status));
        }
        host.send_all(&commands).expect("commands");
        let mut answered = Vec::new();
        while answered.len() < expected.len() {
            let answer = host.receive().expect("an answer");
            let has_status = answer.kind == kind::CAPSULE_RESP;
            if has_status {
                answered.push((answer.cid(), answer.status() & 0xff));
            } else if answer.flags & flag::SUCCESS != 0 {
                answered.push((answer.u16(8), 0));
            }
        }
        answered.sort_unstable();
        assert_eq!(answered, expected);
        let cid = host.cid();
        let fifth = host.call(Command::new(EVENT_REQUEST, cid), &[]);
        assert_ne!(fifth.expect("an answer").status(), 0, "a fifth request");
        // A page of 16 KiB takes a buffer of the pool that is not small.
        assert_eq!(log(&mut host).len(), 2);
    }
    world.unharmed("a full admin queue").await;
}

/// In the name of a host, whose share of the buffers it would be otherwise: answers that are not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_the_discovery_service_in_the_name_of_a_host_takes_none_of_its_share() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::OFF);
    let mut unread = Vec::new();
    for _ in 0..40 {
        let mut host = discoverer(&world).admin(Digests::OFF);
        let pages = |cid| {
            let page = Command::new(GET_LOG_PAGE, cid).cdw(10, (0x8000 - 1) << 16 | 0x70);
            Pdu::capsule(page.sgl(Sgl::Transport(131_072)), &[])
        };
        let pages: Vec<_> = (100..160).map(pages).collect();
        host.send_all(&pages).expect("commands");
        unread.push(host);
    }
    let mut longest = Duration::ZERO;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let begin = Instant::now();
        let written = io.write(1, 0, &[7; 131_072]).expect("a write");
        assert_eq!(written.status(), 0);
        longest = longest.max(begin.elapsed());
        world.bystander.verify();
    }
    println!("128 KiB written beside pages that nobody reads: {longest:?} at most");
    assert!(longest < Duration::from_secs(2), "a write took {longest:?}");
    drop((admin, io, unread));
    world.unharmed("pages that nobody reads").await;
}
