//! The exchange of DH-HMAC-CHAP, message by message: when it is refused, and what it leaves behind.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::refusals::{challenge, count, dial, fields, negotiate_of, send};
use super::turns::comes;
use super::{ALICE, Export, SOON, host};
use crate::common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl};
use crate::common::{Target, dhchap_key, eventually, hmac};

/// Bytes of alice's key, of the controller's, and of a challenge to the controller.
const KEY: [u8; 32] = [1; 32];
const CTRLR_KEY: [u8; 32] = [2; 32];
const CHALLENGE: [u8; 32] = [9; 32];

/// Length of each message's header.
const HEADER: usize = 16;

/// A subsystem that admits alice with a key and a key of the controller.
struct Lab {
    target: Target,
    export: Export,
    alice: Identity,
}

impl Lab {
    async fn new() -> Self {
        let target = Target::start().await;
        let hosts = [("alice", host(ALICE, "", &dhchap_key(1), &dhchap_key(2)))];
        let export = Export::new(&target, "s", &hosts).await;
        let alice = Identity {
            hostnqn: ALICE.to_owned(),
            ..Identity::new(export.port, &export.nqn)
        };
        Self {
            target,
            export,
            alice,
        }
    }

    async fn comes(&self) -> Host {
        comes(Ipv4Addr::LOCALHOST, &self.alice).await
    }

    /// The response to a challenge (NVMe Base Specification, DH-HMAC-CHAP), without a DH group.
    fn response(&self, of_host: bool, challenge: &[u8], sequence: &[u8]) -> Vec<u8> {
        let [host, subsystem] = [&self.alice.hostnqn, &self.alice.subnqn].map(|nqn| nqn.as_bytes());
        let (key, kind, first, second) = if of_host {
            (KEY, b"HostHost".as_slice(), host, subsystem)
        } else {
            (CTRLR_KEY, b"Controller".as_slice(), subsystem, host)
        };
        let parts = [challenge, sequence, &[1, 0, 0], kind, first, &[0], second];
        hmac(&key, &parts)
    }

    /// Proves alice's key, and has the controller prove its own if `mutual`; returns the target's last message.
    fn proves(&self, host: &mut Host, mutual: bool) -> Vec<u8> {
        negotiate_of(host, 0);
        let challenge = receives(host);
        let (sequence, value) = (&challenge[12..16], &challenge[HEADER..HEADER + 32]);
        let mut reply = vec![1, 2, 0, 0, 1, 0, 32, 0, mutual.into(), 0, 0, 0];
        reply.extend(if mutual { [5, 0, 0, 0] } else { [0; 4] });
        reply.extend(self.response(true, value, sequence));
        reply.extend(CHALLENGE);
        sends(host, &reply);
        let success = receives(host);
        assert_eq!(success[..2], [1, 3], "AUTH_Success1: {success:?}");
        success
    }
}

/// Sends a message inside a capsule.
fn sends(host: &mut Host, message: &[u8]) {
    let length = u32::try_from(message.len()).expect("short");
    let cid = host.cid();
    let send = fields(5, cid, length).sgl(Sgl::InCapsule(length));
    assert_eq!(host.call(send, message).expect("an answer").status(), 0);
}

/// Receives the target's message.
fn receives(host: &mut Host) -> Vec<u8> {
    let cid = host.cid();
    let receive = fields(6, cid, 2048).sgl(Sgl::Transport(2048));
    host.send(&Pdu::capsule(receive, &[])).expect("it goes");
    let (answer, message) = host.completion(cid, &[]).expect("an answer");
    assert_eq!(answer.status(), 0);
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_no_longer_asks_the_controller_to_prove_itself_gets_no_answer_to_that() {
    let lab = Lab::new().await;
    let mut host = lab.comes().await;
    let success = lab.proves(&mut host, true);
    assert_eq!(success[8], 1, "the controller answers");
    let answer = lab.response(false, &CHALLENGE, &[5, 0, 0, 0]);
    assert_eq!(success[HEADER..HEADER + 32], answer);
    sends(&mut host, &[1, 4, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    host.enable().expect("it is let in");
    for _ in 0..2 {
        let success = lab.proves(&mut host, false);
        assert_eq!(success[8], 0, "it was not asked");
    }
    assert_eq!(count(&lab.target, "dhchap"), 0);
    lab.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_let_in_authenticates_again_once_a_second() {
    let lab = Lab::new().await;
    let mut host = lab.comes().await;
    lab.proves(&mut host, false);
    let begun = Instant::now();
    lab.proves(&mut host, false);
    assert!(begun.elapsed() < Duration::from_millis(500), "at once");
    lab.proves(&mut host, false);
    lab.proves(&mut host, false);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
    // A host that goes while its challenge waits leaves nothing behind.
    negotiate_of(&mut host, 0);
    let cid = host.cid();
    let receive = fields(6, cid, 2048).sgl(Sgl::Transport(2048));
    host.send(&Pdu::capsule(receive, &[])).expect("it goes");
    drop(host);
    eventually("it is gone", SOON, async || {
        lab.export.connected(ALICE).await.is_empty().then_some(())
    })
    .await;
    lab.proves(&mut lab.comes().await, false);
    lab.target.stop();
}

/// The keep-alive timer, set to its least value of 10 s, ends before the limit of the exchange does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_falls_silent_and_is_ended_by_its_keep_alive_timer_was_refused() {
    let lab = Lab::new().await;
    let mut host = dial(Ipv4Addr::LOCALHOST, lab.alice.address.port()).await;
    host.send(&Pdu::ic_req(Digests::OFF)).expect("sent");
    host.receive_within(SOON).expect("ICResp");
    let cid = host.cid();
    let connect = Command::connect(cid, 0, 31, Sgl::InCapsule(1024));
    let connect = connect.put(48, &1_u32.to_le_bytes());
    let connected = host.call(connect, &lab.alice.connect_data(0xffff));
    assert_eq!(connected.expect("an answer").status(), 0);
    let begun = Instant::now();
    // So that the limit of the exchange, of 10 s too, is due later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    challenge(&mut host);
    host.closed_within(SOON).expect("it is closed");
    assert!(begun.elapsed() < Duration::from_secs(12), "by the timer");
    eventually("it is counted", SOON, async || {
        (count(&lab.target, "dhchap") == 1).then_some(())
    })
    .await;
    lab.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_falls_silent_once_its_key_is_proved_was_not_refused() {
    let lab = Lab::new().await;
    let mut host = lab.comes().await;
    lab.proves(&mut host, true);
    host.closed_within(SOON).expect("it is closed");
    // One that was refused is counted after it, so the count of the first has been made by now.
    send(&mut lab.comes().await, &[0; 72]);
    eventually("the second is counted", SOON, async || {
        (count(&lab.target, "dhchap") > 0).then_some(())
    })
    .await;
    assert_eq!(count(&lab.target, "dhchap"), 1);
    lab.target.stop();
}
