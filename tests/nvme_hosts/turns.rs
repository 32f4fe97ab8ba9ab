//! Hosts that fail authentication are delayed (backoff); other hosts and known hosts are not.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::hello::{SHA384, hello};
use super::refusals::{ask, challenge, count, dial, fields, negotiate, refused, send};
use super::{ALICE, BOB, Export, SOON, host, key_file, reads};
use crate::common::nvme_tcp::{Digests, Host, Identity, Pdu, Sgl};
use crate::common::{Options, Psk, Target, dhchap_key, eventually, malloc, namespace, psk_of};

/// Loopback address of strangers and of hosts that share it with them.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// Connects under this identity from this address, up to the point where it must authenticate.
pub async fn comes(from: Ipv4Addr, identity: &Identity) -> Host {
    let mut host = dial(from, identity.address.port()).await;
    host.send(&Pdu::ic_req(Digests::OFF)).expect("sent");
    host.receive_within(SOON).expect("ICResp");
    host.connect(identity, 0, 0xffff).expect("it may try");
    host
}

/// Makes this many attempts that fail to authenticate.
async fn fails(from: Ipv4Addr, identity: &Identity, times: usize) {
    for _ in 0..times {
        send(&mut comes(from, identity).await, &[0; 72]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fails_to_authenticate_waits_for_its_turn_and_others_at_its_address_do_not() {
    let target = Target::start().await;
    let [a, b] = [1, 2].map(dhchap_key);
    let hosts = [
        ("alice", host(ALICE, "", &a, "")),
        ("bob", host(BOB, "", &b, "")),
    ];
    let export = Export::new(&target, "s", &hosts).await;
    let named = |name: &str| export.raw_host(name);
    let [alice, bob] = [ALICE, BOB].map(named);
    fails(ELSEWHERE, &bob, 14).await;

    // Concurrent attempts are served one after the other; the last one waits for all.
    let begun = Instant::now();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut host = comes(ELSEWHERE, &bob).await;
        ask(&mut host);
        waiting.push(host);
    }
    let mut last = waiting.pop().expect("four");
    let mut first = waiting.swap_remove(0);

    // Neither a new host behind the same address nor a change of the subsystem is delayed.
    for _ in 0..20 {
        refused(ELSEWHERE, &named("nqn.2022-09.io.spdk:stranger")).await;
    }
    challenge(&mut comes(ELSEWHERE, &alice).await);
    let volume = malloc(&export.client, "more", 16).await;
    namespace(&export.client, &export.subsystem, &volume, json!({})).await;
    assert!(begun.elapsed() < Duration::from_secs(6), "in time");
    last.stream().set_nonblocking(true).expect("it is ours");
    let nothing = last.stream().peek(&mut [0]).expect_err("nothing has come");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    last.stream().set_nonblocking(false).expect("it is ours");

    first.receive_within(SOON).expect("its turn comes");
    assert!(
        begun.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
    last.receive_within(SOON).expect("its turn comes");
    assert!(
        begun.elapsed() >= Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );

    // Over the limit of waiting attempts, the rest are closed; closing while waiting is not counted as a failure.
    let before = count(&target, "dhchap");
    let mut many = Vec::new();
    for _ in 0..8 {
        let mut host = comes(ELSEWHERE, &bob).await;
        ask(&mut host);
        many.push(host);
    }
    many.pop()
        .expect("eight")
        .closed_within(2 * SOON)
        .expect("it is closed");
    drop(many);
    drop((first, last, waiting));
    let after = count(&target, "dhchap");
    assert!(after <= before + 9, "{before} {after}");

    // The host itself connects from the other address; from then on strangers there do not delay it.
    let key = key_file(&target, "b", &b);
    let host = export.host(BOB).with_dhchap(&key);
    reads(&target, &host).await.expect("who has the key");
    fails(Ipv4Addr::LOCALHOST, &bob, 20).await;
    let begun = Instant::now();
    challenge(&mut comes(Ipv4Addr::LOCALHOST, &bob).await);
    assert!(begun.elapsed() < Duration::from_secs(1), "at once");
    reads(&target, &host).await.expect("who has the key");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenge_that_finds_no_room_has_failed_and_asking_again_keeps_nothing_open() {
    let target = Target::start().await;
    let hosts = [("alice", host(ALICE, "", &dhchap_key(1), ""))];
    let export = Export::new(&target, "s", &hosts).await;
    let alice = export.raw_host(ALICE);
    let mut host = comes(Ipv4Addr::LOCALHOST, &alice).await;
    negotiate(&mut host);
    let begun = Instant::now();
    let mut asked = 0;
    loop {
        let cid = host.cid();
        let receive = fields(6, cid, 16).sgl(Sgl::Transport(16));
        if host.call(receive, &[]).is_err() {
            break;
        }
        asked += 1;
        assert!(begun.elapsed() < SOON, "it is still open");
        // Sooner than the target closes it after a failure.
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert!(asked > 0, "it is told that it has failed");
    assert_eq!(count(&target, "dhchap"), 1);
    target.stop();
}

/// Returns whether a TLS handshake succeeds with this key.
fn shakes_hands(stream: TcpStream, key: &Psk) -> bool {
    let setup = key.setup().expect("a setup");
    setup.connect("target", stream).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_an_address_with_wrong_keys_waits_for_its_turn_until_one_is_right() {
    let target = Target::start_with(Options::default().alone()).await;
    let [right, wrong] = [psk_of(1), psk_of(2)];
    let export = Export::new(&target, "s", &[("alice", host(ALICE, &right, "", ""))]).await;
    let [right, wrong] = [right, wrong].map(|key| Psk::new(&key, ALICE, &export.nqn));
    let dial = || TcpStream::connect((Ipv4Addr::LOCALHOST, export.port)).expect("connected");
    for _ in 0..8 {
        assert!(!shakes_hands(dial(), &wrong));
    }
    let begun = Instant::now();
    for _ in 0..5 {
        assert!(!shakes_hands(dial(), &wrong));
    }
    // The delay starts at 0.1 s and doubles; each attempt is served when due, not at the next tick of a slow poller.
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(1300), "{waited:?}");
    assert!(waited < Duration::from_millis(2050), "{waited:?}");
    let key = key_file(&target, "a", &psk_of(1));
    let alice = export.host(ALICE).with_psk(&key);
    reads(&target, &alice).await.expect("in its turn");
    for _ in 0..20 {
        assert!(!shakes_hands(dial(), &wrong));
    }
    let begun = Instant::now();
    assert!(shakes_hands(dial(), &right));
    assert!(begun.elapsed() < Duration::from_secs(1), "at once");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_identities_of_a_hello_are_looked_up() {
    let target = Target::start_with(Options::default().args(["--log-format", "json"])).await;
    let export = Export::new(&target, "s", &[("alice", host(ALICE, &psk_of(1), "", ""))]).await;
    let identity = format!("NVMe0R01 {ALICE} {}", export.nqn);
    for (times, is_told) in [(1, false), (4, false), (5, true), (60, true)] {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, export.port)).expect("connected");
        stream.set_read_timeout(Some(SOON)).expect("it is ours");
        let hello = hello(SHA384, &vec![identity.as_str(); times]);
        stream.write_all(&hello).expect("sent");
        let mut answer = Vec::new();
        // The connection is closed, or reset because of unread data.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer.first(), Some(&21), "an alert");
        let is_there = || target.log().contains("A TLS hello names over 4 identities");
        if is_told {
            eventually("it is told", SOON, async || is_there().then_some(())).await;
        } else {
            assert!(!is_there(), "{times}");
        }
    }
    let key = key_file(&target, "a", &psk_of(1));
    let alice = export.host(ALICE).with_psk(&key);
    reads(&target, &alice).await.expect("who has the key");
    target.stop();
}
