//! Notices of changed namespaces, and peers that misbehave when they are asked for the changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::session::{Attached, Session, namespaces_of, read};
use crate::common::nvme_tcp::{Digests, Identity};
use crate::common::nvme_tcp_peer::{Peer, Turn};
use crate::common::{
    Fixture, Options, Relay, Resource, Target, malloc, name_of, namespace, nqn_of,
    remote_controller, subsystem, tcp_controller, tcp_path, unique,
};

/// Longest latency of I/O and calls beside a notice. Unpatched SPDK blocks for 19 s; the margin is for a busy machine.
pub const UNDISTURBED: Duration = Duration::from_millis(200);

/// Latencies of a series of operations.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Returns the number of operations.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the longest latency.
    pub fn longest(&self) -> Duration {
        self.0.iter().copied().max().unwrap_or_default()
    }

    /// Returns how many operations in a million took longer than `limit`.
    pub fn beyond(&self, limit: Duration) -> usize {
        let beyond = self.0.iter().filter(|took| **took > limit).count();
        beyond * 1_000_000 / self.0.len().max(1)
    }
}

/// Reads continuously as a host until told to end.
fn watch(fixture: &Fixture) -> (Arc<AtomicBool>, std::thread::JoinHandle<Times>) {
    let ends = Arc::new(AtomicBool::new(false));
    let identity = Identity::new(fixture.port, &fixture.nqn).named("watcher");
    let end = Arc::clone(&ends);
    let watching = std::thread::spawn(move || {
        let admin = identity.admin(Digests::OFF);
        let mut io = identity.io(&admin, 1);
        let mut times = Times::default();
        while !end.load(Ordering::Relaxed) {
            let begin = Instant::now();
            io.read(1, 0, 1).expect("the watcher reads");
            times.0.push(begin.elapsed());
        }
        times
    });
    (ends, watching)
}

/// Measures the latencies of I/O and of calls for as long as `meanwhile` runs.
pub async fn timed(session: &Session, meanwhile: impl Future<Output = ()>) -> [Times; 2] {
    let (ends, watching) = watch(&session.bystander.fixture);
    let mut times = Times::default();
    let calls = async {
        let volumes = session.of("MallocVolume");
        loop {
            let begin = Instant::now();
            volumes.stats(&session.bystander.fixture.volume).await;
            times.0.push(begin.elapsed());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = calls => {}
        () = meanwhile => {}
    }
    ends.store(true, Ordering::Relaxed);
    [watching.join().expect("the watcher's I/O is right"), times]
}

/// As [`timed`], and asserts that no operation took long.
async fn undisturbed(session: &Session, what: &str, meanwhile: impl Future<Output = ()>) {
    let [io, calls] = timed(session, meanwhile).await.map(|times| times.longest());
    eprintln!("{what}: the longest I/O of another host took {io:?}, a call {calls:?}");
    assert!(io < UNDISTURBED, "{what}: an I/O took {io:?}");
    assert!(calls < UNDISTURBED, "{what}: a call took {calls:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_of_a_peer_that_falls_silent_disturbs_nobody() {
    let mut session = Session::alone().await;
    for what in ["the changed list", "the active list", "a namespace"] {
        let peer = Peer::start();
        let attached = session.attach(&peer).await.expect("the peer does right");
        peer.script(move |ask| {
            let silent = match what {
                "the changed list" => ask.is_admin(0x02),
                "the active list" => ask.is_identify(2),
                _ => ask.is_identify(0),
            };
            if silent { Turn::Silent } else { Turn::Right }
        });
        peer.change(|data| data.add(2));
        undisturbed(&session, what, async {
            assert_eq!(peer.tell_of_namespaces(), 1);
            tokio::time::sleep(Duration::from_secs(1)).await;
        })
        .await;
        // The unanswered command is aborted with its connection; the next connection finds the namespace.
        peer.do_right();
        peer.close_all();
        session.namespaces(&attached, 1).await;
        session.detach(attached).await;
        session.unharmed(what).await;
    }
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_namespace_comes_whenever_its_peer_answers() {
    let mut session = Session::alone().await;
    let peer = Peer::start();
    let (attached, mut export) = session.attach_and_export(&peer).await;
    for nsid in 2..6 {
        peer.change(|data| data.add(nsid));
        assert_eq!(peer.tell_of_namespaces(), 1);
        session.namespaces(&attached, nsid as usize).await;
        read(&mut export, 0, 1).expect("the first goes on");
    }
    // A namespace that is removed and added again at once.
    peer.change(|data| {
        data.namespaces.remove(&5);
    });
    peer.tell_of_namespaces();
    session.namespaces(&attached, 4).await;
    peer.change(|data| data.add(5));
    peer.tell_of_namespaces();
    session.namespaces(&attached, 5).await;
    session.withdraw(export).await;
    session.detach(attached).await;
    session.unharmed("namespaces that come").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_without_an_end_and_identify_that_fails_change_nothing_after_notices() {
    let mut session = Session::alone().await;
    let peer = Peer::start();
    let (attached, mut export) = session.attach_and_export(&peer).await;
    for what in ["P8", "P11"] {
        match what {
            "P8" => peer.change(|data| data.list = Some(|_| (1..=1024).collect())),
            _ => {
                peer.change(|data| data.list = None);
                peer.script(|ask| match ask.is_identify(2) {
                    true => Turn::Fail(0, 6),
                    false => Turn::Right,
                });
            }
        }
        undisturbed(&session, what, async {
            for _ in 0..20 {
                peer.tell_of_namespaces();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        read(&mut export, 0, 1).expect("the namespace is what it was");
        session.namespaces(&attached, 1).await;
    }
    session.withdraw(export).await;
    session.detach(attached).await;
    session.unharmed("P8, P11").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_to_a_subsystem_of_ones_own_takes_new_namespaces() {
    let mut session = Session::alone().await;
    let client = session.client.clone();
    // No namespaces yet: their UUIDs exist here, so SPDK would create no second bdev, and fail the attach at once.
    let own = unique("own");
    let subsystem = subsystem(&client, &own, json!({})).await;
    let (listens, port) = tcp_controller(&client, &subsystem).await;
    let remote = remote_controller(&client, &own, "DISABLE").await;
    let path = tcp_path(port, &nqn_of(&own));
    let path = session.of("NvmePath").created(&remote, "path", path).await;
    let path = name_of(&path);
    let mut made = Vec::new();
    undisturbed(&session, "a namespace of one's own", async {
        for _ in 0..4 {
            let volume = malloc(&client, &unique("own-volume"), 4).await;
            let shown = namespace(&client, &subsystem, &volume, json!({})).await;
            made.push((volume, shown));
        }
    })
    .await;
    for (volume, shown) in made {
        session.ends("NvmeNamespace", &shown).await;
        session.ends("MallocVolume", &volume).await;
    }
    session.ends("NvmePath", &path).await;
    session.ends("NvmeRemoteController", &remote).await;
    session.ends("NvmeController", &listens).await;
    session.ends("NvmeSubsystem", &subsystem).await;
    session.unharmed("a subsystem of one's own").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_targets_that_serve_each_other_make_namespaces_at_once() {
    let mut session = Session::alone().await;
    let second = Target::start_with(Options::default().beside(&session.target)).await;
    let (one, other) = (
        Fixture::tcp(&session.target, 4).await,
        Fixture::tcp(&second, 4).await,
    );
    let clients = [session.client.clone(), second.client().await];
    for (client, peer) in clients.iter().zip([&other, &one]) {
        let remote = remote_controller(client, "each", "DISABLE").await;
        let path = tcp_path(peer.port, &peer.nqn);
        Resource::new(client, "NvmePath")
            .created(&remote, "path", path)
            .await;
    }
    let make = async |client, fixture: &Fixture| {
        for _ in 0..3 {
            let volume = malloc(client, &unique("each-volume"), 4).await;
            namespace(client, &fixture.subsystem, &volume, json!({})).await;
        }
    };
    undisturbed(&session, "two targets that serve each other", async {
        tokio::join!(make(&clients[0], &one), make(&clients[1], &other));
        for client in &clients {
            let attached = Attached {
                id: "each".into(),
                controller: "nvmeRemoteControllers/each".into(),
                path: String::new(),
            };
            namespaces_of(client, &attached, 4).await;
        }
    })
    .await;
    for client in &clients {
        let path = "nvmeRemoteControllers/each/nvmePaths/path";
        Resource::new(client, "NvmePath").deleted(path).await;
    }
    session.unharmed("two targets that serve each other").await;
    second.stop();
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_behind_a_network_that_takes_no_requests_makes_namespaces() {
    let mut session = Session::alone().await;
    let second = Target::start_with(Options::default().beside(&session.target)).await;
    let far = Fixture::tcp(&second, 4).await;
    let relay = Relay::to(far.port).await;
    let remote = remote_controller(&session.client, "relayed", "DISABLE").await;
    let path = tcp_path(relay.port, &far.nqn);
    session.of("NvmePath").created(&remote, "path", path).await;
    let attached = Attached {
        id: "relayed".into(),
        controller: remote,
        path: "nvmeRemoteControllers/relayed/nvmePaths/path".into(),
    };
    for count in 2..5 {
        undisturbed(&session, "requests that are held back", async {
            relay.hold_requests(true);
            let volume = malloc(&far.client, &unique("relayed-volume"), 4).await;
            namespace(&far.client, &far.subsystem, &volume, json!({})).await;
            // The notice has arrived while the requests that it causes are held back: the answers come late.
            tokio::time::sleep(Duration::from_secs(1)).await;
            relay.hold_requests(false);
            session.namespaces(&attached, count).await;
        })
        .await;
    }
    session.detach(attached).await;
    session.unharmed("requests that are held back").await;
    second.stop();
    session.target.stop();
}
