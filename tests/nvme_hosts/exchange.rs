//! The exchange of DH-HMAC-CHAP, message by message: when it is refused, and what it leaves behind.

use std::net::Ipv4Addr;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openssl::sha::sha256;
use serde_json::json;

use super::old_keys::later;
use super::refusals::{challenge, count, dial, fields, negotiate_of, send};
use super::turns::comes;
use super::{ALICE, Export, SOON, host, hosts_of};
use crate::common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl};
use crate::common::{Options, Target, base64, dhchap_key, eventually, hmac};

/// Bytes of alice's key, of the controller's, and of a challenge to the controller.
const KEY: [u8; 32] = [1; 32];
const CTRLR_KEY: [u8; 32] = [2; 32];
const CHALLENGE: [u8; 32] = [9; 32];

/// Numbers of DH groups: none, and the one whose computation takes longest.
const NO_GROUP: u8 = 0;
const LARGE_GROUP: u8 = 4;

/// Rotations of the keys while hosts authenticate.
const ROTATIONS: u8 = 60;

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
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let target = Target::start_with(options).await;
        let hosts = [("alice", host(ALICE, "", &dhchap_key(1), &dhchap_key(2)))];
        let export = Export::new(&target, "s", &hosts).await;
        let alice = export.raw_host(ALICE);
        Self {
            target,
            export,
            alice,
        }
    }

    async fn comes(&self) -> Host {
        comes(Ipv4Addr::LOCALHOST, &self.alice).await
    }

    /// Proves alice's key, and has the controller prove its own if `mutual`; returns the target's last message.
    fn proves(&self, host: &mut Host, mutual: bool) -> Vec<u8> {
        let success = proves_with(&self.alice, host, &KEY, NO_GROUP, mutual);
        assert_eq!(success[..2], [1, 3], "AUTH_Success1: {success:?}");
        success
    }
}

/// The response to a challenge (NVMe Base Specification, DH-HMAC-CHAP).
fn response(
    alice: &Identity,
    key: &[u8],
    of_host: bool,
    challenge: &[u8],
    sequence: &[u8],
) -> Vec<u8> {
    let [host, subsystem] = [&alice.hostnqn, &alice.subnqn].map(|nqn| nqn.as_bytes());
    let (kind, first, second) = if of_host {
        (b"HostHost".as_slice(), host, subsystem)
    } else {
        (b"Controller".as_slice(), subsystem, host)
    };
    let parts = [challenge, sequence, &[1, 0, 0], kind, first, &[0], second];
    hmac(key, &parts)
}

/// Proves a key, with a DH group; returns the target's last message.
fn proves_with(alice: &Identity, host: &mut Host, key: &[u8], group: u8, mutual: bool) -> Vec<u8> {
    negotiate_of(host, group);
    let challenge = receives(host);
    let (sequence, value) = (&challenge[12..16], &challenge[HEADER..HEADER + 32]);
    // The host's exponent is 1: its public value is the generator, and the secret the target's public value.
    let length = u16::from_le_bytes([challenge[10], challenge[11]]);
    let secret = &challenge[HEADER + 32..][..length.into()];
    let mut public = vec![0; secret.len()];
    let mut value = value.to_vec();
    if let Some(last) = public.last_mut() {
        *last = 2;
        value = hmac(&sha256(secret), &[&value]);
    }
    let mut reply = vec![1, 2, 0, 0, 1, 0, 32, 0, mutual.into(), 0];
    reply.extend(length.to_le_bytes());
    reply.extend(if mutual { [5, 0, 0, 0] } else { [0; 4] });
    reply.extend(response(alice, key, true, &value, sequence));
    reply.extend(CHALLENGE);
    reply.extend(public);
    sends(host, &reply);
    receives(host)
}

/// Sends a message inside a capsule.
fn sends(host: &mut Host, message: &[u8]) {
    let length = u32::try_from(message.len()).expect("short");
    let cid = host.cid();
    let send = fields(5, cid, length).sgl(Sgl::InCapsule(length));
    assert_eq!(host.call(send, message).expect("an answer").status(), 0);
}

/// Receives the target's message.
pub fn receives(host: &mut Host) -> Vec<u8> {
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
    let answer = response(&lab.alice, &CTRLR_KEY, false, &CHALLENGE, &[5, 0, 0, 0]);
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
    let lab = Lab::with(Options::default().alone()).await;
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

/// The keys are replaced by the app thread while a reactor derives a secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_refuses_nobody_whose_key_stays_valid() {
    const NAME: &str = "nvmeSubsystems/s/nvmeHosts/alice";
    let mut options = Options::default();
    options.cores = Some("0,1");
    let lab = Lab::with(options).await;
    let hosts = hosts_of(&lab.export.client);
    let alice = &lab.alice;
    // The key that hosts use. It changes while none of them is authenticating.
    let current = RwLock::new(1);
    let ended = AtomicBool::new(false);
    let authenticate = || {
        let mut times = 0;
        while !ended.load(Ordering::Relaxed) {
            let key = current.read().expect("no panic");
            let mut host = alice.negotiated(Digests::OFF);
            host.connect(alice, 0, 0xffff).expect("it may try");
            let end = proves_with(alice, &mut host, &[*key; 32], LARGE_GROUP, false);
            if end[..2] != [1, 3] {
                return Err(format!("key {key}: {end:?}"));
            }
            times += 1;
        }
        Ok(times)
    };
    std::thread::scope(|scope| {
        let hosts_of_keys = [(); 2].map(|()| scope.spawn(authenticate));
        let rotate = async {
            for n in 2..ROTATIONS + 2 {
                let object = json!({
                    "dhchap_key": base64(dhchap_key(n)),
                    "dhchap_ctrlr_key": base64(dhchap_key(n + 100)),
                    "old_keys_until": later(3600),
                });
                hosts.updated(NAME, object, None).await;
                *current.write().expect("no panic") = n;
                let over = json!({ "old_keys_until": later(0) });
                hosts.updated(NAME, over, Some(&["old_keys_until"])).await;
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(rotate));
        ended.store(true, Ordering::Relaxed);
        for host in hosts_of_keys {
            let times = host.join().expect("no panic").expect("its key is valid");
            assert!(times > 0, "it has tried");
        }
    });
    assert_eq!(count(&lab.target, "dhchap"), 0);
    lab.target.stop();
}
