//! TLS records: records of many PDUs, records that the kernel cannot take at once (backpressure), and records that
//! OpenSSL has buffered before they are asked for.

use std::collections::HashMap;
use std::io::{ErrorKind, Result};

use rustix::net::sockopt::set_socket_recv_buffer_size;

use super::identity::secure;
use super::tls::Tunnel;
use crate::common::nvme_tcp::{
    ANSWER, Bystander, Command, Digests, Host, Identity, Pdu, Sgl, flag, kind,
};
use crate::common::{Bdevperf, HOST, Initiator, Job, PSK, Psk, Target, poll_blocking};

/// Blocks of a large read (128 KiB).
const BLOCKS: u16 = 256;

/// Bytes of a block.
const BLOCK: usize = 512;

/// Concurrent reads: 12 MiB, more than both kernels buffer.
const READS: u16 = 96;

/// Least number of bytes in the target's send buffer once it is full.
const FULL: u64 = 1 << 20;

/// Receive buffer of a slow host.
const NARROW: usize = 32 << 10;

/// Number of large reads that cover the 4 MiB volume.
const PARTS: u16 = 32;

fn lba(part: u16) -> u64 {
    u64::from(part % PARTS) * u64::from(BLOCKS)
}

/// Returns the data of a part of the volume; the parts differ.
fn pattern(part: u16) -> Vec<u8> {
    let seed = u32::from(part % PARTS + 1).wrapping_mul(0x9e37_79b9);
    let words = (0..u32::from(BLOCKS) * 128).map(|n| (n.wrapping_mul(seed) ^ seed).to_le_bytes());
    words.flatten().collect()
}

/// Connects an I/O queue of this depth.
fn deep(identity: &Identity, admin: &Host, depth: u16) -> Host {
    let mut io = identity.negotiated(admin.digests);
    let cid = io.cid();
    let command = Command::connect(cid, 1, depth, Sgl::InCapsule(1024));
    let connected = io.call(command, &identity.connect_data(admin.cntlid));
    assert_eq!(connected.expect("Connect").status(), 0);
    io
}

/// Receives the data of this many reads, by command ID.
fn read_all(io: &mut Host, count: u16) -> Result<HashMap<u16, Vec<u8>>> {
    let mut data: HashMap<u16, Vec<u8>> = HashMap::new();
    let mut left = count;
    while left > 0 {
        let answer = io.receive()?;
        if answer.kind == kind::C2H_DATA {
            let (cid, at) = (answer.u16(8), answer.u32(12) as usize);
            let read = data.entry(cid).or_default();
            read.resize(read.len().max(at + answer.data.len()), 0);
            read[at..at + answer.data.len()].copy_from_slice(&answer.data);
            left -= u16::from(answer.flags & flag::SUCCESS != 0);
        } else {
            assert_eq!(answer.status(), 0, "command {}", answer.cid());
            left -= 1;
        }
    }
    Ok(data)
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_kernel_does_not_take_at_once_arrive_whole() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let identity = secure(&target, "late", HOST, PSK).await;
    let key = Psk::new(PSK, &identity.hostnqn, &identity.subnqn);
    for digests in [Digests::OFF, Digests::BOTH] {
        let (first, second) = (
            Tunnel::open(identity.address, &key).expect("its own key"),
            Tunnel::open_narrow(identity.address, &key, NARROW).expect("its own key"),
        );
        let admin = first.carries(&identity).admin(digests);
        let mut io = deep(&second.carries(&identity), &admin, READS + 8);
        set_socket_recv_buffer_size(io.stream(), NARROW).expect("a size");
        for part in 0..PARTS {
            let written = io.write(1, lba(part), &pattern(part)).expect("it writes");
            assert_eq!(written.status(), 0);
        }
        // Further reads are sent while a part of a record waits to be sent.
        let mut ask = |cids: std::ops::Range<u16>| {
            for cid in cids {
                let read = Command::io(2, 1000 + cid, 1, lba(cid), BLOCKS);
                let read = read.sgl(Sgl::Transport(u32::from(BLOCKS) * BLOCK as u32));
                io.send(&Pdu::capsule(read, &[])).expect("it goes");
            }
        };
        ask(0..READS - 4);
        let full = poll_blocking(ANSWER, || (second.queued() > FULL).then_some(()));
        full.expect("the target's kernel takes no more");
        ask(READS - 4..READS);
        let data = read_all(&mut io, READS).expect("all reads");
        for cid in 0..READS {
            let (read, right) = (&data[&(1000 + cid)], pattern(cid));
            assert!(*read == right, "read {cid} with {digests:?}");
        }
    }
    bystander
        .unharmed(&mut target, "a host that reads late")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pdu_with_its_data_is_no_more_than_one_record() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let identity = secure(&target, "small", HOST, PSK).await;
    let key = Psk::new(PSK, &identity.hostnqn, &identity.subnqn);
    let tunnels = [(); 2].map(|()| Tunnel::open(identity.address, &key).expect("its own key"));
    let admin = tunnels[0].carries(&identity).admin(Digests::BOTH);
    let mut io = tunnels[1].carries(&identity).io(&admin, 1);
    let (before, mut pdus) = (tunnels[1].records(), 0);
    for lba in 0..32 {
        let cid = io.cid();
        let read = Command::io(2, cid, 1, lba, 8).sgl(Sgl::Transport(4096));
        io.send(&Pdu::capsule(read, &[])).expect("it goes");
        loop {
            let answer = io.receive().expect("an answer");
            pdus += 1;
            if answer.kind != kind::C2H_DATA || answer.flags & flag::SUCCESS != 0 {
                break;
            }
        }
    }
    let records = tunnels[1].records() - before;
    assert!(records <= pdus, "{records} records carry {pdus} PDUs");
    drop((io, admin));
    bystander.unharmed(&mut target, "small reads").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_with_the_greeting_is_read_without_more_to_come() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let identity = secure(&target, "early", HOST, PSK).await;
    let key = Psk::new(PSK, &identity.hostnqn, &identity.subnqn);
    let tunnel = Tunnel::open(identity.address, &key).expect("its own key");
    let mut host = tunnel.carries(&identity).dial().expect("a tunnel");
    let cid = host.cid();
    let connect = Command::connect(cid, 0, 31, Sgl::InCapsule(1024));
    let connect = Pdu::capsule(connect, &identity.connect_data(0xffff));
    host.send_all(&[Pdu::ic_req(Digests::OFF), connect])
        .expect("it goes");
    // The target may refuse the early Connect in any way, but not by silence.
    let answered = host.receive().expect("an answer");
    assert!(matches!(answered.kind, kind::IC_RESP | kind::C2H_TERM_REQ));
    if let Err(error) = host.receive() {
        assert_ne!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
    drop(host);
    bystander.unharmed(&mut target, "an early Connect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verified_io_of_all_sizes_over_tls_is_right_again_after_a_reconnect() {
    let target = Target::start().await;
    let identity = secure(&target, "sizes", HOST, PSK).await;
    let dir = target.scratch();
    let key = dir.join("key");
    std::fs::write(&key, PSK).expect("there is room");
    let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key, owner).expect("it is ours");
    let host = Initiator::tcp(identity.address.port(), &identity.subnqn)
        .with_host(HOST)
        .with_psk(&key);
    let jobs = [(0, 4), (1, 16), (2, 64), (3, 128)].map(|(number, kib)| Job {
        kind: "verify",
        size: kib << 10,
        depth: 8,
        blocks: (number * 2048, 2048),
    });
    for round in 0..2 {
        let load = Bdevperf::start(&host.driver(), dir, "Remoten1", &jobs).await;
        let (done, _) = load.perform().await.expect("it verifies");
        for job in done {
            assert!(job.ios > 0, "round {round}: {job:?}");
        }
    }
    target.stop();
}
