//! Compares a minute of each way in which notices arrive with a minute of as many changes without notices. On a busy
//! machine I/O and calls take over 5 ms now and then in all of them, and must not do so more often with notices.

use std::time::{Duration, Instant};

use serde_json::json;

use super::notice::{Times, UNDISTURBED, timed};
use super::session::{Attached, Session};
use crate::common::nvme_tcp_peer::{Ask, Peer, Turn};
use crate::common::{
    Client, Fixture, Options, Relay, Resource, Target, malloc, namespace, nqn_of,
    remote_controller, subsystem, tcp_controller, tcp_path, unique,
};

/// Latency above which an operation counts as slow.
const LONG: Duration = Duration::from_millis(5);

const MINUTE: Duration = Duration::from_secs(60);

/// Delay between two changes.
const PACE: Duration = Duration::from_millis(250);

/// Creates and deletes namespaces for a minute.
async fn changes(client: &Client, subsystem: &str) {
    let end = Instant::now() + MINUTE;
    let volume = malloc(client, &unique("minute"), 1).await;
    let namespaces = Resource::new(client, "NvmeNamespace");
    let mut made = 0;
    while Instant::now() < end {
        let name = namespace(client, subsystem, &volume, json!({})).await;
        tokio::time::sleep(PACE).await;
        namespaces.deleted(&name).await;
        tokio::time::sleep(PACE).await;
        made += 1;
    }
    Resource::new(client, "MallocVolume").deleted(&volume).await;
    assert!(made > 20, "{made} namespaces in a minute");
}

/// Attaches a controller with this ID to a subsystem on this port.
async fn attach(client: &Client, id: &str, port: u16, nqn: &str) -> Attached {
    let controller = remote_controller(client, id, "DISABLE").await;
    Resource::new(client, "NvmePath")
        .created(&controller, "path", tcp_path(port, nqn))
        .await;
    Attached {
        id: id.into(),
        path: format!("{controller}/nvmePaths/path"),
        controller,
    }
}

/// Compares a minute with notices to one without.
fn judge(way: &str, calm: &[Times; 2], told: &[Times; 2]) {
    for (what, calm, told) in [("I/O", &calm[0], &told[0]), ("calls", &calm[1], &told[1])] {
        let [before, during] = [calm, told].map(|times| times.beyond(LONG));
        eprintln!(
            "{way}: {what} over {LONG:?}: {before} of a million without notices and {during} with them; the longest {:?} and \
             {:?}; {} and {} in all",
            calm.longest(),
            told.longest(),
            calm.count(),
            told.count()
        );
        assert!(
            during <= 2 * before + 500,
            "{way}: {what}: {during} of a million, {before} without"
        );
        assert!(
            told.longest() < UNDISTURBED,
            "{way}: {what}: {:?}",
            told.longest()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "five minutes of measuring"]
async fn minutes_of_notices_make_no_io_and_no_call_wait() {
    let mut session = Session::start().await;
    let second = Target::start_with(Options::default().beside(&session.target)).await;
    let client = session.client.clone();
    let alone = subsystem(&client, "alone", json!({})).await;
    let calm = timed(&session, changes(&client, &alone)).await;

    let own = subsystem(&client, "own", json!({})).await;
    let (_, port) = tcp_controller(&client, &own).await;
    let attached = attach(&client, "own", port, &nqn_of("own")).await;
    let told = timed(&session, changes(&client, &own)).await;
    judge("a path to a subsystem of its own", &calm, &told);
    session.detach(attached).await;

    let (one, other) = (
        Fixture::tcp(&session.target, 4).await,
        Fixture::tcp(&second, 4).await,
    );
    let elsewhere = second.client().await;
    let there = attach(&client, "there", other.port, &other.nqn).await;
    let back = attach(&elsewhere, "back", one.port, &one.nqn).await;
    let told = timed(&session, async {
        tokio::join!(
            changes(&client, &one.subsystem),
            changes(&elsewhere, &other.subsystem)
        );
    })
    .await;
    judge("two targets that serve each other", &calm, &told);
    for (client, attached) in [(&client, there), (&elsewhere, back)] {
        Resource::new(client, "NvmePath")
            .deleted(&attached.path)
            .await;
    }

    let relay = Relay::to(other.port).await;
    let relayed = attach(&client, "relayed", relay.port, &other.nqn).await;
    let told = timed(&session, async {
        let holding = async {
            loop {
                relay.hold_requests(true);
                tokio::time::sleep(6 * PACE).await;
                relay.hold_requests(false);
                tokio::time::sleep(2 * PACE).await;
            }
        };
        tokio::select! {
            () = changes(&elsewhere, &other.subsystem) => {}
            () = holding => {}
        }
    })
    .await;
    judge("a network that takes no requests", &calm, &told);
    relay.hold_requests(false);
    session.detach(relayed).await;

    let peer = Peer::start();
    let attached = session.attach(&peer).await.expect("the peer does right");
    let told = timed(&session, silent_after_each(&peer)).await;
    judge("a peer that falls silent after each", &calm, &told);
    session.detach(attached).await;
    session.unharmed("minutes of notices").await;
    second.stop();
    session.target.stop();
}

/// Sends notices, after each of which the peer stops answering and is reconnected.
async fn silent_after_each(peer: &Peer) {
    let silent = |ask: &Ask| match ask.is_admin(0x02) || ask.is_identify(2) {
        true => Turn::Silent,
        false => Turn::Right,
    };
    let (end, mut notices) = (Instant::now() + MINUTE, 0);
    while Instant::now() < end {
        for nsid in 2..6 {
            peer.script(silent);
            peer.change(|data| match data.namespaces.contains_key(&nsid) {
                true => drop(data.namespaces.remove(&nsid)),
                false => data.add(nsid),
            });
            notices += peer.tell_of_namespaces();
            tokio::time::sleep(PACE).await;
            peer.do_right();
            peer.close_all();
            tokio::time::sleep(3 * PACE).await;
        }
    }
    // The reconnect backoff grows for a peer that closes its connections.
    assert!(notices >= 5, "{notices}");
}
