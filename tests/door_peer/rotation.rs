//! Key changes while a path is connected, with a peer that drops or stalls the exchange.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use tonic::Code;

use super::authentication::{ATR, AUTH_RECV, AUTH_SEND, CONNECT, answer, attach, challenge};
use super::authentication::{detach, other, success};
use super::session::{Attached, Export, Session};
use crate::common::nvme_tcp_peer::{Ask, Peer, Resp, Turn};
use crate::common::{HOST, Options, base64, dhchap_key, eventually};

/// Timeout of a reconnect: a path reconnects after 2 to 8 s.
const SOON: Duration = Duration::from_secs(30);

/// What the peer does when it is asked for its challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Right,
    /// Closes the connection of this queue once, then behaves.
    ClosesOnce(u16),
    Closes,
    Silent,
    /// Refuses the host.
    Refuses,
    /// Refuses the host on this queue alone.
    RefusesOn(u16),
}

/// Scripts the peer to demand authentication on each queue, whenever the host starts it.
fn demand(peer: &Peer, mood: &Arc<Mutex<Mood>>) {
    let mood = Arc::clone(mood);
    let mut exchanges: HashMap<usize, (u16, u8)> = HashMap::new();
    let mut transactions = 0;
    peer.script(move |ask: &Ask| {
        if ask.is_fabrics(CONNECT) {
            return Turn::Send(vec![Resp::of(ask.cid()).with_cdw0(1 | ATR).bytes()]);
        }
        let exchange = exchanges.entry(ask.connection).or_default();
        if ask.is_fabrics(AUTH_SEND) {
            if exchange.1 == 0 {
                exchange.0 = transactions;
                transactions += 1;
            }
            return Turn::Send(vec![Resp::of(ask.cid()).bytes()]);
        }
        if !ask.is_fabrics(AUTH_RECV) {
            return Turn::Right;
        }
        let (transaction, step) = *exchange;
        exchange.1 = 1 - step;
        if step == 1 {
            return answer(ask, &success(None)(transaction));
        }
        let right = || answer(ask, &challenge(&[])(transaction));
        let mut mood = mood.lock();
        match *mood {
            Mood::Right => right(),
            Mood::ClosesOnce(queue) if queue == ask.queue => {
                *mood = Mood::Right;
                Turn::Close
            }
            Mood::ClosesOnce(_) => right(),
            Mood::Closes => Turn::Close,
            Mood::Silent => Turn::Silent,
            Mood::RefusesOn(queue) if queue != ask.queue => right(),
            Mood::Refuses | Mood::RefusesOn(_) => {
                answer(ask, &other(&[0, 0xf1, 0, 0, 0, 0, 1, 1])(transaction))
            }
        }
    });
}

/// Attaches a peer that demands authentication, and exports its namespace.
async fn moody(session: &Session) -> (Peer, Arc<Mutex<Mood>>, Attached, Export) {
    let peer = Peer::start();
    let mood = Arc::new(Mutex::new(Mood::Right));
    demand(&peer, &mood);
    let attached = attach(session, &peer, false).await.expect("it is right");
    let export = session.export(&attached).await;
    (peer, mood, attached, export)
}

async fn is_up(session: &Session, attached: &Attached) {
    let path = json!({ "name": attached.path });
    eventually("the path works", SOON, async || {
        let stats = session.client.call("StatsNvmePath", path.clone());
        stats.await.ok()
    })
    .await;
}

/// Only a successful exchange proves a key, be it on the reconnect after the first connection was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_taken_only_once_each_queue_has_authenticated_with_it() {
    let mut session = Session::start().await;
    let (peer, mood, attached, export) = moody(&session).await;
    let name = format!("{}/nvmeCredentials/keys", attached.controller);
    let credentials = session.of("NvmeCredential");
    for (n, next, expected) in [
        (3, Mood::ClosesOnce(0), Ok(())),
        (4, Mood::ClosesOnce(1), Ok(())),
        (5, Mood::Closes, Err(Code::Unavailable)),
        (6, Mood::Silent, Err(Code::Unavailable)),
        (7, Mood::Refuses, Err(Code::FailedPrecondition)),
        (8, Mood::Right, Ok(())),
    ] {
        is_up(&session, &attached).await;
        *mood.lock() = next;
        let begun = Instant::now();
        let keys = json!({ "hostnqn": HOST, "dhchap_key": base64(dhchap_key(n)) });
        let request = credentials.update_request(&name, keys, None);
        let updated = session.client.call("UpdateNvmeCredential", request).await;
        assert_eq!(
            updated.as_ref().map(|_| ()).map_err(tonic::Status::code),
            expected,
            "{next:?}: {updated:?}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(12),
            "{next:?}: in time"
        );
        if next == Mood::Refuses {
            let status = updated.expect_err("it is refused");
            assert!(status.message().contains("refuses this host"), "{status}");
        }
        *mood.lock() = Mood::Right;
    }

    // A path that is down can prove nothing: the key is accepted, and used at the next reconnect.
    *mood.lock() = Mood::Closes;
    peer.close_all();
    let path = json!({ "name": attached.path });
    eventually("the path is down", SOON, async || {
        let stats = session.client.call("StatsNvmePath", path.clone());
        stats.await.err()
    })
    .await;
    let keys = json!({ "dhchap_key": base64(dhchap_key(9)) });
    credentials
        .updated(&name, keys, Some(&["dhchap_key"]))
        .await;
    *mood.lock() = Mood::Right;
    is_up(&session, &attached).await;
    session.withdraw(export).await;
    detach(&session, attached).await;
    session.unharmed("keys that change").await;
    session.target.stop();
}

/// A namespace that is exported has a queue on each reactor: one of them is not on the app thread, which reports the
/// reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_refused_says_why_on_each_reactor() {
    let mut options = Options::default();
    options.cores = Some("0,1");
    let mut session = Session::of_target(options).await;
    let (_peer, mood, attached, export) = moody(&session).await;
    let name = format!("{}/nvmeCredentials/keys", attached.controller);
    let credentials = session.of("NvmeCredential");
    for queue in [0, 1, 2] {
        is_up(&session, &attached).await;
        *mood.lock() = Mood::RefusesOn(queue);
        let keys = json!({ "hostnqn": HOST, "dhchap_key": base64(dhchap_key(3)) });
        let request = credentials.update_request(&name, keys, None);
        let updated = session.client.call("UpdateNvmeCredential", request).await;
        let Err(status) = updated else {
            panic!("queue {queue} is not refused\n{}", session.target.log());
        };
        let reason = "the peer refuses this host, authentication failed";
        assert_eq!(status.code(), Code::FailedPrecondition, "{queue}: {status}");
        assert!(status.message().contains(reason), "{queue}: {status}");
        *mood.lock() = Mood::Right;
    }
    session.withdraw(export).await;
    detach(&session, attached).await;
    session.unharmed("a queue that is refused").await;
    session.target.stop();
}
