//! Connections under a host's NQN that have not proved its key: limits on their buffers, and which are displaced.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::made::events_until;
use super::refusals::{challenge, count, dial, fields, negotiate};
use super::turns::comes;
use super::{ALICE, Export, SOON, STAY, host, key_file, place, reads};
use crate::common::nvme_tcp::{Digests, Host, Identity, Pdu, Sgl, kind};
use crate::common::{Options, Target, dhchap_key, eventually};

/// `OPI_NVME_TCP_UNADMITTED_PER_ADDRESS`.
const PER_ADDRESS: usize = 256;

/// How long a host that authenticates may take for a message (`fabrics-auth-limit` of spdk/changes).
const EXCHANGE: Duration = Duration::from_secs(10);

/// Loopback address of connections that are not alice's.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// Creates a subsystem that admits alice with a key, and returns her identity without the key.
async fn export(target: &Target) -> (Export, Identity) {
    let hosts = [("alice", host(ALICE, "", &dhchap_key(1), ""))];
    let export = Export::new(target, "s", &hosts).await;
    let alice = export.raw_host(ALICE);
    (export, alice)
}

/// Announces an authentication message of this length; returns the status.
fn announces(host: &mut Host, length: u32) -> u8 {
    let cid = host.cid();
    let send = fields(5, cid, length).sgl(Sgl::Transport(length));
    host.send(&Pdu::capsule(send, &[])).expect("it goes");
    host.receive_within(SOON).expect("an answer").kind
}

/// Returns whether the connection is open, without reading from it.
fn is_open(host: &Host) -> bool {
    let stream = host.stream();
    stream.set_nonblocking(true).expect("it is ours");
    let open = match stream.peek(&mut [0]) {
        Ok(bytes) => bytes > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).expect("it is ours");
    open
}

fn open(hosts: &[Host]) -> usize {
    hosts.iter().filter(|host| is_open(host)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_yet_to_authenticate_moves_4_kib_at_most() {
    let target = Target::start().await;
    let (_export, alice) = export(&target).await;
    for (length, answer) in [
        (4096, kind::R2T),
        (4097, kind::C2H_TERM_REQ),
        (131_072, kind::C2H_TERM_REQ),
    ] {
        let mut host = comes(Ipv4Addr::LOCALHOST, &alice).await;
        assert_eq!(announces(&mut host, length), answer, "{length}");
    }
    target.stop();
}

/// The allocation length is the host's choice: the answer is as long as its message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_may_allocate_any_length_for_an_answer() {
    let target = Target::start().await;
    let (_export, alice) = export(&target).await;
    for length in [4096, 4097, 8192, 131_072, 1 << 20, u32::MAX] {
        let mut host = comes(Ipv4Addr::LOCALHOST, &alice).await;
        negotiate(&mut host);
        let cid = host.cid();
        let receive = fields(6, cid, length).sgl(Sgl::Transport(length));
        host.send(&Pdu::capsule(receive, &[])).expect("it goes");
        let (answer, challenge) = host.completion(cid, &[]).expect("an answer");
        assert_eq!((answer.status(), challenge[1]), (0, 1), "{length}");
        // The 2,048-bit group and SHA-256.
        assert_eq!(challenge.len(), 16 + 32 + 256, "{length}");
    }

    // A length that differs from that of the SGL is refused with a status.
    for (allocated, sgl) in [(4097, 8192), (8192, 4096), (8192, 4097), (0, 8192)] {
        let mut host = comes(Ipv4Addr::LOCALHOST, &alice).await;
        negotiate(&mut host);
        let cid = host.cid();
        let receive = fields(6, cid, allocated).sgl(Sgl::Transport(sgl));
        host.send(&Pdu::capsule(receive, &[])).expect("it goes");
        let (answer, _) = host.completion(cid, &[]).expect("an answer");
        assert_eq!(answer.status() & 0x7ff, 2, "{allocated} {sgl}");
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_yet_to_authenticate_is_no_connected_host() {
    let target = Target::start().await;
    let (export, alice) = export(&target).await;
    let mut stranger = comes(ELSEWHERE, &alice).await;
    challenge(&mut stranger);
    assert_eq!(export.connected(ALICE).await, [] as [i64; 0]);
    let key = key_file(&target, "key", &dhchap_key(1));
    let proved = export.host(ALICE).with_dhchap(&key);
    let load = proved.driver().load(&place(&target, "alice"), STAY).await;
    export.comes(ALICE).await;
    assert_eq!(export.connected(ALICE).await.len(), 1, "who has the key");
    load.stop().await.expect("all of it is verified");
    let told = events_until(&target, "HostDisconnected", 1).await;
    let told = told.matches("HostConnected").count();
    assert_eq!(told, 1, "not of the stranger: {told}");
    drop(stranger);
    target.stop();
}

/// The attack asks for more small buffers than alice's half; they are reclaimed within 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_by_a_hosts_name_without_its_key_takes_none_of_its_share() {
    let target =
        Target::start_with(Options::default().alone().args(["--iobuf-small", "1536"])).await;
    let (export, alice) = export(&target).await;
    let mut strangers = Vec::new();
    for address in 3..7 {
        for _ in 0..200 {
            let begun = Instant::now();
            let mut stranger = comes(Ipv4Addr::new(127, 0, 0, address), &alice).await;
            assert_eq!(announces(&mut stranger, 4096), kind::R2T);
            strangers.push((stranger, begun));
        }
    }
    let key = key_file(&target, "key", &dhchap_key(1));
    let proved = export.host(ALICE).with_dhchap(&key);
    reads(&target, &proved).await.expect("who has the key");
    // On a slow machine the first of them have reached the limit of their exchange by now.
    let displaced = |(stranger, begun): &&(Host, Instant)| {
        let is_gone = !is_open(stranger);
        is_gone && begun.elapsed() < EXCHANGE
    };
    let displaced = strangers.iter().filter(displaced).count();
    assert_eq!(displaced, 0, "alice waits for none of them");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_say_nothing_displace_nobody_who_authenticates() {
    let target = Target::start().await;
    let (_export, alice) = export(&target).await;
    let mut authenticate = Vec::new();
    for _ in 0..8 {
        authenticate.push(comes(ELSEWHERE, &alice).await);
    }
    let mut silent = Vec::new();
    for _ in 0..PER_ADDRESS + 44 {
        silent.push(dial(ELSEWHERE, alice.address.port()).await);
    }
    eventually("strangers give way", SOON, async || {
        (open(&silent) <= PER_ADDRESS).then_some(())
    })
    .await;
    for host in &mut authenticate {
        challenge(host);
    }
    target.stop();
}

/// As after a restart, when all hosts reconnect at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_too_many_authenticate_the_oldest_gives_way_and_has_not_failed() {
    let target = Target::start().await;
    let (_export, alice) = export(&target).await;
    // These have used reactor time for their challenge: displacing them counts as their failure.
    let mut challenged = Vec::new();
    for _ in 0..3 {
        let mut host = comes(ELSEWHERE, &alice).await;
        challenge(&mut host);
        challenged.push(host);
    }
    let mut authenticate = Vec::new();
    for _ in 0..PER_ADDRESS + 40 {
        authenticate.push(comes(ELSEWHERE, &alice).await);
    }
    eventually("the oldest give way", SOON, async || {
        let displaced = open(&challenged) == 0 && !is_open(&authenticate[0]);
        (displaced && open(&authenticate) <= PER_ADDRESS).then_some(())
    })
    .await;
    assert_eq!(count(&target, "dhchap"), 3);
    let last = authenticate.last_mut().expect("many");
    challenge(last);

    // The waiting connections are displaced one by one by hosts that connect later.
    let mut host = dial(ELSEWHERE, alice.address.port()).await;
    host.send(&Pdu::ic_req(Digests::OFF)).expect("sent");
    host.receive_within(SOON).expect("ICResp");
    host.connect(&alice, 0, 0xffff).expect("it may try");
    assert_eq!(count(&target, "dhchap"), 3);
    target.stop();
}
