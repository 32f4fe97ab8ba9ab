//! DH-HMAC-CHAP with hostile peers: each message is validated before anything is computed from it, and the reason of a
//! failure is reported.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tonic::{Code, Status};

use super::session::{Attached, Session};
use crate::common::nvme_tcp::flag;
use crate::common::nvme_tcp_peer::{Ask, NQN, Peer, Resp, Turn, c2h_data};
use crate::common::{
    HOST, base64, dhchap_key, eventually, name_of, remote_controller, tcp_path, unique,
};

/// Fabrics commands (NVMe over Fabrics, figure of command types).
pub const CONNECT: u8 = 1;
pub const AUTH_SEND: u8 = 5;
pub const AUTH_RECV: u8 = 6;

/// Bits of Connect's result: authentication required, and authentication with secure channel required.
pub const ATR: u32 = 1 << 17;
const ASCR: u32 = 1 << 18;

/// Bytes that the host's Authentication Receive asks for.
const DATA: usize = 4096;

/// Builds a message of the peer for a transaction ID.
pub type Message = Box<dyn Fn(u16) -> Vec<u8> + Send>;

/// Builds a valid challenge (SHA-256, no group) with these bytes replaced at these offsets.
pub fn challenge(changes: &'static [(usize, &'static [u8])]) -> Message {
    Box::new(move |transaction| {
        let mut message = vec![0; DATA];
        message[..2].copy_from_slice(&[1, 1]);
        message[4..6].copy_from_slice(&transaction.to_le_bytes());
        message[6] = 32;
        message[8] = 1;
        message[12] = 9;
        message[16..48].fill(0x5a);
        for (at, bytes) in changes {
            message[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        message
    })
}

/// Builds a challenge of the 2,048-bit group whose public key repeats this byte to this length.
fn with_public_key(byte: u8, length: u16) -> Message {
    Box::new(move |transaction| {
        let mut message = challenge(&[(9, &[1])])(transaction);
        message[10..12].copy_from_slice(&length.to_le_bytes());
        message[48..48 + usize::from(length)].fill(byte);
        message
    })
}

/// Builds a Success1 message; `proof`, if given, is the length of the peer's response, which is all zeroes.
pub fn success(proof: Option<u8>) -> Message {
    Box::new(move |transaction| {
        let mut message = vec![0; DATA];
        message[..2].copy_from_slice(&[1, 3]);
        message[4..6].copy_from_slice(&transaction.to_le_bytes());
        message[6] = 32;
        if let Some(length) = proof {
            message[6] = length;
            message[8] = 1;
        }
        message
    })
}

/// Builds a message that begins with these bytes, whatever the transaction.
pub fn other(bytes: &'static [u8]) -> Message {
    Box::new(move |_| {
        let mut message = bytes.to_vec();
        message.resize(DATA, 0);
        message
    })
}

/// Scripts the peer to demand authentication and send these messages on each connection, then to do `then`.
fn demand(peer: &Peer, bits: u32, messages: Vec<Message>, then: Turn) {
    let mut exchanges: HashMap<usize, (u16, usize)> = HashMap::new();
    let mut next = 0;
    peer.script(move |ask: &Ask| {
        if ask.is_fabrics(CONNECT) {
            exchanges.insert(ask.connection, (next, 0));
            next += 1;
            return Turn::Send(vec![Resp::of(ask.cid()).with_cdw0(1 | bits).bytes()]);
        }
        if ask.is_fabrics(AUTH_SEND) {
            return Turn::Send(vec![Resp::of(ask.cid()).bytes()]);
        }
        if !ask.is_fabrics(AUTH_RECV) {
            return Turn::Right;
        }
        let Some((transaction, at)) = exchanges.get_mut(&ask.connection) else {
            return Turn::Close;
        };
        let message = messages.get(*at).map(|message| message(*transaction));
        *at += 1;
        message.map_or(then.clone(), |message| answer(ask, &message))
    });
}

pub fn answer(ask: &Ask, message: &[u8]) -> Turn {
    let data = c2h_data(ask.cid(), 0, message, flag::LAST, None);
    Turn::Send(vec![data, Resp::of(ask.cid()).bytes()])
}

fn keys(mutual: bool) -> Value {
    let ctrlr = if mutual { dhchap_key(2) } else { String::new() };
    json!({ "hostnqn": HOST, "dhchap_key": base64(dhchap_key(1)), "dhchap_ctrlr_key": base64(ctrlr) })
}

/// Creates a controller with keys and a path to the peer.
pub async fn attach(session: &Session, peer: &Peer, mutual: bool) -> Result<Attached, Status> {
    let id = unique("peer");
    let controller = remote_controller(&session.client, &id, "DISABLE").await;
    let credentials = session.of("NvmeCredential");
    let credential = credentials.created(&controller, "keys", keys(mutual)).await;
    let path = tcp_path(peer.port, NQN);
    match session
        .of("NvmePath")
        .create(&controller, "path", path)
        .await
    {
        Ok(path) => Ok(Attached {
            id,
            controller,
            path: name_of(&path),
        }),
        Err(status) => {
            credentials.deleted(&name_of(&credential)).await;
            session.ends("NvmeRemoteController", &controller).await;
            Err(status)
        }
    }
}

pub async fn detach(session: &Session, attached: Attached) {
    let credentials = session.of("NvmeCredential");
    for credential in credentials.names(&attached.controller).await {
        session.ends("NvmeCredential", &credential).await;
    }
    session.detach(attached).await;
}

/// Expects the attach to fail with this reason.
async fn fails(session: &Session, peer: &Peer, mutual: bool, what: &str, reason: &str) {
    let Err(status) = attach(session, peer, mutual).await else {
        panic!("{what}: it is attached");
    };
    assert_eq!(status.code(), Code::FailedPrecondition, "{what}: {status}");
    assert!(status.message().contains(reason), "{what}: {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn challenges_that_make_no_sense_are_refused_before_anything_is_computed() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let nonsense = "the peer's challenge makes no sense";
    let another = "the peer sends another message than is due";
    let unanswered = "the peer's challenge cannot be answered";
    for (what, message, reason) in [
        ("another transaction", challenge(&[(4, &[77])]), nonsense),
        ("sequence number 0", challenge(&[(12, &[0])]), nonsense),
        ("hash 0", challenge(&[(8, &[0])]), nonsense),
        ("hash 4", challenge(&[(8, &[4])]), nonsense),
        ("hash 255", challenge(&[(8, &[255])]), nonsense),
        ("a length of 0", challenge(&[(6, &[0])]), nonsense),
        ("a length of 255", challenge(&[(6, &[255])]), nonsense),
        ("SHA-512 with 32 bytes", challenge(&[(8, &[3])]), nonsense),
        ("group 6", challenge(&[(9, &[6])]), nonsense),
        ("group 255", challenge(&[(9, &[255])]), nonsense),
        ("a key of no group", challenge(&[(10, &[0, 1])]), nonsense),
        ("a group without a key", challenge(&[(9, &[1])]), nonsense),
        (
            "a key beyond the message",
            challenge(&[(9, &[1, 0xff, 0xff])]),
            nonsense,
        ),
        (
            "a key of one byte too many",
            challenge(&[(9, &[1, 0xd1, 0x0f])]),
            nonsense,
        ),
        (
            "the group of 8,192 bits",
            challenge(&[(9, &[5, 0, 4])]),
            "the peer chooses a group that it was not offered",
        ),
        ("public key 0", with_public_key(0, 256), unanswered),
        (
            "a public key too large",
            with_public_key(0xff, 256),
            unanswered,
        ),
        (
            "a public key of 4,048 bytes",
            with_public_key(0xff, 4048),
            unanswered,
        ),
        ("a reply", other(&[1, 2]), another),
        ("the end at once", success(None), another),
        ("an unknown type", other(&[7, 1]), another),
        ("zeroes", other(&[]), another),
        (
            "a refusal",
            other(&[0, 0xf1, 0, 0, 0, 0, 1, 1]),
            "the peer refuses this host, authentication failed",
        ),
        (
            "a refusal without a reason",
            other(&[0, 0xf1, 0, 0, 0, 0, 1, 200]),
            "the peer refuses this host, for a reason that there is not",
        ),
    ] {
        demand(&peer, ATR, vec![message], Turn::Close);
        fails(&session, &peer, false, what, reason).await;
    }
    peer.script(|ask| match ask.is_fabrics(AUTH_SEND) {
        true => Turn::Fail(0, 1),
        false => Turn::Right,
    });
    let reason = "may have no key for this host";
    fails(&session, &peer, true, "no authentication", reason).await;
    demand(&peer, ATR | ASCR, vec![], Turn::Close);
    fails(&session, &peer, false, "a secure channel", "not supported").await;
    session.unharmed("challenges").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_prove_itself_is_refused_where_that_is_asked_for() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let messages = |end: Message| vec![challenge(&[]), end];
    for (what, end, reason) in [
        (
            "no proof",
            success(None),
            "the peer does not prove that it has the controller's key",
        ),
        (
            "zeroes",
            success(Some(32)),
            "the peer does not have the controller's key",
        ),
        (
            "a proof of another length",
            success(Some(64)),
            "the peer's answer makes no sense",
        ),
        (
            "another transaction",
            other(&[1, 3, 0, 0, 77, 0, 32, 0, 1]),
            "the peer's answer makes no sense",
        ),
    ] {
        demand(&peer, ATR, messages(end), Turn::Close);
        fails(&session, &peer, true, what, reason).await;
        // Not demanding authentication does not spare the peer its proof.
        if what == "no proof" {
            demand(&peer, 0, messages(success(None)), Turn::Close);
            fails(&session, &peer, true, what, reason).await;
        }
    }
    demand(&peer, ATR, messages(success(None)), Turn::Close);
    let one_way = attach(&session, &peer, false).await;
    let one_way = one_way.expect("nobody asked for a proof");
    detach(&session, one_way).await;
    session.unharmed("proofs").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_chooses_weaker_than_the_weakest_is_refused() {
    let mut session = Session::with(&[
        "--dhchap-min-hash",
        "sha384",
        "--dhchap-min-group",
        "ffdhe2048",
    ])
    .await;
    let peer = Peer::start();
    for (what, message, reason) in [
        (
            "SHA-256",
            with_public_key(1, 256),
            "the peer chooses a hash that it was not offered",
        ),
        (
            "no group",
            challenge(&[(6, &[48]), (8, &[2])]),
            "the peer chooses a group that it was not offered",
        ),
    ] {
        demand(&peer, ATR, vec![message], Turn::Close);
        fails(&session, &peer, false, what, reason).await;
    }
    session.unharmed("a weak choice").await;
    session.target.stop();
}

/// The deadline covers the whole exchange, not each message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_while_it_authenticates_holds_nothing_up() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    for messages in [vec![], vec![challenge(&[])]] {
        demand(&peer, ATR, messages, Turn::Silent);
        let begun = Instant::now();
        let Err(status) = attach(&session, &peer, false).await else {
            panic!("it is attached");
        };
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{status}");
    }
    session.unharmed("silence").await;
    session.target.stop();
}

/// Race: the keys are deleted while the host waits for a challenge, so no response may be computed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenge_that_comes_when_the_keys_have_gone_is_not_answered() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let [holds, asked] = [false, false].map(|flag| Arc::new(AtomicBool::new(flag)));
    let (release, released) = mpsc::channel::<()>();
    let late: Message = Box::new({
        let (holds, asked) = (Arc::clone(&holds), Arc::clone(&asked));
        move |transaction| {
            if holds.swap(false, Ordering::Relaxed) {
                asked.store(true, Ordering::Relaxed);
                // The error means that the test has dropped the sender, which releases the message.
                let _ = released.recv();
            }
            challenge(&[])(transaction)
        }
    });
    demand(&peer, ATR, vec![late, success(None)], Turn::Close);
    let attached = attach(&session, &peer, false).await.expect("it is right");

    // The next connection waits for its challenge until the keys are deleted.
    holds.store(true, Ordering::Relaxed);
    peer.close_all();
    eventually(
        "it waits for the challenge",
        Duration::from_secs(20),
        async || asked.load(Ordering::Relaxed).then_some(()),
    )
    .await;
    let name = format!("{}/nvmeCredentials/keys", attached.controller);
    session.ends("NvmeCredential", &name).await;
    drop(release);
    let path = json!({ "name": attached.path });
    let reason = "cannot be answered";
    eventually(reason, Duration::from_secs(20), async || {
        let stats = session.client.call("StatsNvmePath", path.clone()).await;
        let status = stats.err()?;
        (status.message().contains(reason) || status.message().contains("no key for it"))
            .then_some(())
    })
    .await;
    session.detach(attached).await;
    session.unharmed("keys that have gone").await;
    session.target.stop();
}
