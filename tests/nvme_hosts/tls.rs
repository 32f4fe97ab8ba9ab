//! Hosts over TLS: which of them are refused for their key, and which are not.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use super::hello::{SHA256, hello, hello_with};
use super::refusals::{count, lines, told};
use super::{ALICE, Export, SOON, host, key_file, reads};
use crate::common::nvme_tcp::connections;
use crate::common::{Options, Psk, Target, eventually, psk_form, psk_of};

/// Content type of a record of the handshake, and the type of a ServerHello in it.
const HANDSHAKE: u8 = 22;
const SERVER_HELLO: u8 = 2;
/// Content type of an alert.
const ALERT: u8 = 21;

/// A subsystem that admits alice with a key.
struct Lab {
    target: Target,
    export: Export,
    key: Psk,
}

impl Lab {
    async fn new() -> Self {
        let target = Target::start_with(Options::default().args(["--log-format", "json"])).await;
        let hosts = [("alice", host(ALICE, &psk_of(1), "", ""))];
        let export = Export::new(&target, "s", &hosts).await;
        let key = Psk::new(&psk_of(1), ALICE, &export.nqn);
        Self {
            target,
            export,
            key,
        }
    }

    fn dial(&self) -> TcpStream {
        let to = (Ipv4Addr::LOCALHOST, self.export.port);
        let stream = TcpStream::connect(to).expect("the port takes connections");
        stream.set_read_timeout(Some(SOON)).expect("it is ours");
        stream
    }

    /// Sends a ClientHello; returns the first bytes of the answer, and the connection.
    fn says(&self, hello: &[u8]) -> ([u8; 6], TcpStream) {
        let mut stream = self.dial();
        stream.write_all(hello).expect("sent");
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).expect("an answer");
        (answer, stream)
    }

    /// Has connections fail to prove the key, all begun before the first of them has failed.
    async fn fails(&self, times: u64) {
        let hello = hello(SHA256, &[&self.key.identity]);
        let before = count(&self.target, "tls_key");
        let streams: Vec<_> = (0..times).map(|_| self.dial()).collect();
        for mut stream in &streams {
            stream.write_all(&hello).expect("sent");
        }
        eventually("all are counted", SOON, async || {
            (count(&self.target, "tls_key") == before + times).then_some(())
        })
        .await;
    }
}

/// Returns whether a program has accepted the other end of this connection, from the kernel's table.
fn is_accepted(stream: &TcpStream) -> bool {
    let ends = [stream.peer_addr(), stream.local_addr()];
    let [from, to] = ends.map(|end| format!(":{:04X}", end.expect("connected").port()));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let rows = table.lines().map(str::split_whitespace);
    rows.map(Iterator::collect::<Vec<_>>)
        .any(|row| row[1].ends_with(&from) && row[2].ends_with(&to) && row[9] != "0")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_its_key_is_told_of_though_it_resets_the_connection() {
    let lab = Lab::new().await;
    lab.fails(12).await;
    let before = lines(&lab.target, "tls_key").len();
    // It waits for its turn, so it can be reset before its hello is read.
    let mut stream = lab.dial();
    let hello = hello(SHA256, &[&lab.key.identity]);
    stream.write_all(&hello).expect("sent");
    eventually("it is accepted", SOON, async || {
        is_accepted(&stream).then_some(())
    })
    .await;
    assert_eq!(count(&lab.target, "tls_key"), 12, "not read yet");
    set_socket_linger(&stream, Some(Duration::ZERO)).expect("it is ours");
    drop(stream);
    eventually("it is counted", SOON, async || {
        let lines = lines(&lab.target, "tls_key");
        (count(&lab.target, "tls_key") == 13 && lines.len() > before).then_some(())
    })
    .await;
    told(&lab.target, "tls_key", ALICE, "127.0.0.1").await;
    lab.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_its_key_that_ends_the_handshake_is_not_refused() {
    let lab = Lab::new().await;
    let ([content, .., message], stream) = lab.says(&hello_with(&[], &lab.key));
    assert_eq!([content, message], [HANDSHAKE, SERVER_HELLO]);
    drop(stream);
    // Bytes that are no TLS are told of, but are nobody's.
    lab.dial().write_all(&[b'x'; 145]).expect("sent");
    eventually("both are told", SOON, async || {
        let log = lab.target.log();
        let failed = log.matches("TLS handshake of 127.0.0.1 failed").count();
        let left_out = log.contains("earlier lines like this one");
        (failed > 0 && (failed > 1 || left_out || log.contains("wrong version number")))
            .then_some(())
    })
    .await;
    assert_eq!(count(&lab.target, "tls_key"), 0);
    assert_eq!(count(&lab.target, "tls_identity"), 0);
    lab.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_may_offer_the_identities_of_several_keys() {
    let lab = Lab::new().await;
    let other = format!("NVMe0R01 {ALICE} nqn.2022-09.io.spdk:other");
    for unknown in [&[other.as_str()][..], &["a ticket"], &[&other, "a", "b"]] {
        let ([content, .., message], _) = lab.says(&hello_with(unknown, &lab.key));
        assert_eq!([content, message], [HANDSHAKE, SERVER_HELLO], "{unknown:?}");
    }
    assert_eq!(count(&lab.target, "tls_identity"), 0);
    let ([content, ..], _) = lab.says(&hello(SHA256, &[&other, "a ticket"]));
    assert_eq!(content, ALERT);
    told(&lab.target, "tls_identity", ALICE, "127.0.0.1").await;
    assert_eq!(count(&lab.target, "tls_identity"), 1);
    lab.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_its_turn_has_its_time_from_then_on() {
    let lab = Lab::new().await;
    lab.fails(14).await;
    let begun = Instant::now();
    // Turns of 2 s each: the last one has waited for 10 s.
    let mut waiting: Vec<_> = (0..5).map(|_| lab.dial()).collect();
    let mut last = waiting.pop().expect("five");
    // Later than 10 s after it was accepted.
    tokio::time::sleep(Duration::from_secs(12).saturating_sub(begun.elapsed())).await;
    last.write_all(&hello_with(&[], &lab.key)).expect("sent");
    let mut answer = [0; 6];
    last.read_exact(&mut answer).expect("it has time");
    assert_eq!(answer[0], HANDSHAKE);
    let key = key_file(&lab.target, "a", &psk_of(1));
    drop((waiting, last));
    let alice = lab.export.host(ALICE).with_psk(&key);
    reads(&lab.target, &alice).await.expect("who has the key");
    lab.target.stop();
}

/// Connections that never send a ClientHello.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_silent_connections_take_no_memory_and_keep_no_host_with_a_key_out() {
    const SILENT: usize = 2_000;
    /// The bound of connections of one address that are not admitted, of both reactors, and what else is open.
    const BOUNDED: usize = 300;
    let lab = Lab::new().await;
    let alice = lab.export.host(ALICE);
    let key = key_file(&lab.target, "key", &psk_of(1));
    let alice = alice.with_psk(&key);
    reads(&lab.target, &alice).await.expect("she has the key");
    let before = lab.target.resident_mib();
    let silent: Vec<_> = (0..SILENT).map(|_| lab.dial()).collect();
    reads(&lab.target, &alice).await.expect("also beside them");
    let grown = lab.target.resident_mib().saturating_sub(before);
    assert!(grown <= 32, "{grown} MiB for {SILENT} connections");
    eventually("their number is bounded", SOON, async || {
        (connections(&lab.target) <= BOUNDED).then_some(())
    })
    .await;
    eventually("all are closed", SOON, async || {
        silent.iter().all(is_closed).then_some(())
    })
    .await;
    assert_eq!(
        count(&lab.target, "tls_key"),
        0,
        "nobody has failed to prove it"
    );
    lab.target.stop();
}

/// Returns whether the target has closed this connection, on which it has sent nothing.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("it is ours");
    !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// The forms of the NVMe/TCP transport specification 1.1, 3.6.1.5, and those that nvme-cli makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_form_of_a_key_admits_its_host() {
    let target = Target::start().await;
    let forms = [("00", 32), ("00", 48), ("01", 32), ("02", 48)];
    let keys = forms.map(|(hash, length)| psk_form(hash, &[0x5b; 48][..length]));
    let export = Export::new(&target, "s", &[("alice", host(ALICE, &keys[0], "", ""))]).await;
    let name = "nvmeSubsystems/s/nvmeHosts/alice";
    for (n, key) in keys.iter().enumerate() {
        let object = serde_json::json!({ "psk": crate::common::base64(key) });
        let hosts = super::hosts_of(&export.client);
        hosts.updated(name, object, Some(&["psk"])).await;
        let file = key_file(&target, &format!("key{n}"), key);
        let alice = export.host(ALICE).with_psk(&file);
        let read = reads(&target, &alice).await;
        read.unwrap_or_else(|said| panic!("{key}: {said}"));
        let other = key_file(
            &target,
            "other",
            &psk_form(forms[n].0, &[0x5c; 48][..forms[n].1]),
        );
        let other = export.host(ALICE).with_psk(&other);
        reads(&target, &other)
            .await
            .expect_err("another key of the form");
    }
    target.stop();
}
