//! Refused hosts are logged, counted and delayed, while a known host is not delayed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpSocket;

use super::{ALICE, BOB, Export, SOON, host, hosts_of, key_file, reads};
use crate::common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl};
use crate::common::{Options, Target, dhchap_key, eventually, metrics, psk_of};

/// Returns the counter of refusals for a reason.
pub fn count(target: &Target, reason: &str) -> u64 {
    let text = metrics(target.http);
    let name = format!("opi_spdk_hosts_refused_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.expect("it is there").parse().expect("a number")
}

/// Returns the log lines of hosts refused for this reason.
pub fn lines(target: &Target, reason: &str) -> Vec<Value> {
    let log = target.log();
    let lines = log.lines().filter(|line| line.contains("host refused"));
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line["reason"] == reason).collect()
}

/// Waits until the refusal of a host has been counted and logged.
pub async fn told(target: &Target, reason: &str, host: &str, address: &str) {
    eventually(&format!("{reason} is told"), SOON, async || {
        let lines = lines(target, reason);
        let found = lines
            .iter()
            .any(|line| line["host"] == host && line["address"] == address);
        (found && count(target, reason) > 0).then_some(())
    })
    .await;
}

/// Connects from a loopback address.
pub async fn dial(from: Ipv4Addr, port: u16) -> Host {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((from, 0))).expect("bound");
    let to = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    let stream = socket.connect(to).await.expect("connected");
    let stream: TcpStream = stream.into_std().expect("a stream");
    stream.set_nonblocking(false).expect("it blocks");
    Host::over(stream).expect("a stream")
}

/// Connects as a host that is not admitted, and expects a refusal.
pub async fn refused(from: Ipv4Addr, identity: &Identity) {
    let mut host = dial(from, identity.address.port()).await;
    host.send(&Pdu::ic_req(Digests::OFF)).expect("sent");
    host.receive_within(Duration::from_secs(10))
        .expect("ICResp");
    let error = host.connect(identity, 0, 0xffff).expect_err("refused");
    assert!(error.to_string().contains("0x184"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_refused_is_logged_with_its_name_and_address_and_counted_by_reason() {
    let options = Options::default().args(["--log-format", "json"]);
    let target = Target::start_with(options).await;
    let [key, other, ctrlr] = [1, 2, 3].map(dhchap_key);
    let hosts = [
        ("alice", host(ALICE, "", &key, "")),
        ("bob", host(BOB, "", &key, &ctrlr)),
    ];
    let clear = Export::new(&target, "clear", &hosts).await;
    let [a, b] = [psk_of(1), psk_of(2)];
    let tls = Export::new(&target, "tls", &[("alice", host(ALICE, &a, "", ""))]).await;
    let [key, other] =
        [("key", key), ("other", other)].map(|(name, key)| key_file(&target, name, &key));
    let [a, b] = [("a", &a), ("b", &b)].map(|(name, key)| key_file(&target, name, key));
    let stranger = "nqn.2022-09.io.spdk:stranger";
    let bob = clear.host(BOB).with_dhchap(&key);
    for (reason, name, attempt) in [
        ("dhchap", ALICE, clear.host(ALICE).with_dhchap(&other)),
        ("controller", BOB, bob.with_dhchap_ctrlr(&other)),
        ("not_admitted", stranger, clear.host(stranger)),
        ("tls_key", ALICE, tls.host(ALICE).with_psk(&b)),
        ("tls_identity", stranger, tls.host(stranger).with_psk(&a)),
    ] {
        assert_eq!(count(&target, reason), 0, "{reason}");
        reads(&target, &attempt).await.expect_err(reason);
        told(&target, reason, name, "127.0.0.1").await;
    }
    assert_eq!(count(&target, "other_key"), 0);
    let log = target.log();
    for file in [&key, &other, &a, &b] {
        let key = std::fs::read_to_string(file).expect("it is there");
        assert!(!log.contains(key.trim()), "a key in the log");
    }

    // All connections of a flood are counted; the log holds some of them and the number of suppressed lines.
    let admitted = clear.host(ALICE).with_dhchap(&key);
    reads(&target, &admitted).await.expect("known from now on");
    let before = count(&target, "not_admitted");
    let told_before = lines(&target, "not_admitted").len() as u64;
    let identity = Identity::new(clear.port, &clear.nqn).named("flood");
    for _ in 0..100 {
        refused(Ipv4Addr::LOCALHOST, &identity).await;
    }
    assert_eq!(count(&target, "not_admitted"), before + 100);
    eventually("all are told", SOON, async || {
        let log = target.log();
        let more = log
            .lines()
            .filter(|line| line.contains("more hosts refused"));
        let more = more.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let more: u64 = more.filter_map(|line| line["more"].as_u64()).sum();
        let lines = lines(&target, "not_admitted").len() as u64 - told_before;
        (lines + more == 100).then_some(())
    })
    .await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_asks_for_what_is_not_there_was_refused_too() {
    let target = Target::start_with(Options::default().args(["--log-format", "json"])).await;
    let hosts = [("alice", host(ALICE, "", "", ""))];
    let [here, there] = [
        Export::new(&target, "here", &hosts).await,
        Export::new(&target, "there", &hosts).await,
    ];
    let alice = |subnqn: &str| Identity {
        hostnqn: ALICE.to_owned(),
        ..Identity::new(here.port, subnqn)
    };
    for (reason, subnqn, status) in [
        ("unknown_subsystem", "nqn.2022-09.io.spdk:gone", "0x182"),
        ("other_listener", &there.nqn, "0x184"),
    ] {
        assert_eq!(count(&target, reason), 0, "{reason}");
        let identity = alice(subnqn);
        let mut host = identity.negotiated(Digests::OFF);
        let error = host.connect(&identity, 0, 0xffff).expect_err(reason);
        assert!(error.to_string().contains(status), "{error}");
        told(&target, reason, ALICE, "127.0.0.1").await;
        assert_eq!(lines(&target, reason)[0]["subsystem"], subnqn);
        assert_eq!(count(&target, reason), 1, "{reason}");
    }
    alice(&here.nqn).admin(Digests::OFF);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_or_falls_silent_while_it_authenticates_was_refused_and_is_closed() {
    let target = Target::start_with(Options::default().args(["--log-format", "json"])).await;
    let key = dhchap_key(1);
    let export = Export::new(&target, "s", &[("alice", host(ALICE, "", &key, ""))]).await;
    let alice = export.raw_host(ALICE);
    let connected = || {
        let mut host = alice.negotiated(Digests::OFF);
        host.connect(&alice, 0, 0xffff).expect("it may try");
        host
    };
    let mut silent = connected();

    // The connection is closed before the first authentication message, or after the challenge.
    drop(connected());
    told(&target, "dhchap", ALICE, "127.0.0.1").await;
    assert_eq!(count(&target, "dhchap"), 1);
    let mut challenged = connected();
    challenge(&mut challenged);
    drop(challenged);
    eventually("both are counted", SOON, async || {
        (count(&target, "dhchap") == 2).then_some(())
    })
    .await;

    // A host that has failed is counted once, whatever else it sends.
    let mut failed = connected();
    for _ in 0..5 {
        send(&mut failed, &[0; 72]);
    }

    // A host that the target disconnects has not failed authentication.
    let mut revoked = Identity {
        hostnqn: BOB.to_owned(),
        ..alice.clone()
    }
    .negotiated(Digests::OFF);
    let bob = export.admit("bob", host(BOB, "", &key, "")).await;
    let named = Identity {
        hostnqn: BOB.to_owned(),
        ..alice.clone()
    };
    revoked.connect(&named, 0, 0xffff).expect("it may try");
    challenge(&mut revoked);
    hosts_of(&export.client).deleted(&bob).await;
    revoked.closed_within(SOON).expect("it is closed");

    let before = silent.closed_within(2 * SOON).expect("it is closed");
    assert!(before.is_empty(), "{before:?}");
    eventually("all are counted", SOON, async || {
        (count(&target, "dhchap") == 4).then_some(())
    })
    .await;
    drop(failed);
    let key = key_file(&target, "key", &key);
    let proved = export.host(ALICE).with_dhchap(&key);
    reads(&target, &proved).await.expect("who has the key");
    assert_eq!(count(&target, "dhchap"), 4, "once each");
    target.stop();
}

/// Builds the fields of an authentication command of this length.
pub fn fields(fctype: u8, cid: u16, length: u32) -> Command {
    let command = Command::fabrics(fctype, cid).put(41, &[1, 1, 0xe9]);
    command.put(44, &length.to_le_bytes())
}

/// Sends an authentication message, which the target accepts whatever its content.
pub fn send(host: &mut Host, message: &[u8; 72]) {
    let cid = host.cid();
    let send = fields(5, cid, 72).sgl(Sgl::InCapsule(72));
    assert_eq!(host.call(send, message).expect("an answer").status(), 0);
}

/// Negotiates authentication with SHA-256 and the 2,048-bit group.
pub fn negotiate(host: &mut Host) {
    negotiate_of(host, 1);
}

/// Negotiates authentication with SHA-256 and this group, by its number.
pub fn negotiate_of(host: &mut Host, group: u8) {
    let mut message = [0; 72];
    (message[4], message[7], message[8]) = (1, 1, 1);
    (message[10], message[11], message[12], message[42]) = (1, 1, 1, group);
    send(host, &message);
}

/// Asks for a challenge; returns the command's ID.
pub fn ask(host: &mut Host) -> u16 {
    negotiate(host);
    let cid = host.cid();
    let receive = fields(6, cid, 2048).sgl(Sgl::Transport(2048));
    host.send(&Pdu::capsule(receive, &[])).expect("it goes");
    cid
}

/// Asks for a challenge and receives it.
pub fn challenge(host: &mut Host) {
    let cid = ask(host);
    let (answer, challenge) = host.completion(cid, &[]).expect("an answer");
    assert_eq!((answer.status(), challenge[1]), (0, 1), "a challenge");
}
