//! Peers that stop answering: I/O ends by its timeout, the path is reported as down, and everything can be deleted.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::session::{Attached, END, Session, read};
use crate::common::nvme_tcp_peer::{NQN, Peer, Resp, Turn};
use crate::common::{eventually, name_of, remote_controller, tcp_path, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_whose_peer_swallows_a_read_can_be_deleted() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    // The first read of the new volume, by whichever reader, is not answered.
    let swallowed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&swallowed);
    let (attached, mut export) = session.attach_and_export(&peer).await;
    peer.script(move |ask| {
        if ask.is_io(2) {
            seen.store(true, Ordering::Relaxed);
            return Turn::Silent;
        }
        Turn::Right
    });
    let reading = std::thread::spawn(move || {
        let answer = read(&mut export, 0, 8);
        (export, answer)
    });
    eventually("the read has come", END, async || {
        swallowed.load(Ordering::Relaxed).then_some(())
    })
    .await;
    let (export, _) = reading.join().expect("it gives up by itself");
    session.withdraw(export).await;
    session.detach(attached).await;
    session.unharmed("P14").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn io_that_is_not_answered_ends_and_the_path_is_connected_anew() {
    let mut session = Session::with(&["--remote-io-timeout", "2"]).await;
    let peer = Peer::start();
    let (attached, mut export) = session.attach_and_export(&peer).await;
    peer.script(|ask| match ask.is_io(2) {
        true => Turn::Silent,
        false => Turn::Right,
    });
    let before = peer.connections();
    let begin = Instant::now();
    let answer = read(&mut export, 0, 8);
    let took = begin.elapsed();
    let error = answer.expect_err("nobody has answered").to_string();
    assert!(
        error.contains("status"),
        "{error}: it is answered with an error"
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
    peer.do_right();
    eventually("the path is connected anew", END, async || {
        (peer.connections() >= before + 2).then_some(())
    })
    .await;
    let data = eventually("I/O goes on", END, async || read(&mut export, 0, 8).ok()).await;
    assert!(data.iter().all(|byte| *byte == 0));
    // The log is written by a thread of its own, so wait for its lines.
    let told = |session: &Session| {
        let log = session.target.log();
        log.matches("was not answered in time").count()
    };
    eventually("it is told of", END, async || {
        (told(&session) > 0).then_some(())
    })
    .await;
    session.withdraw(export).await;
    session.detach(attached).await;
    session.unharmed("I/O that is not answered").await;
    let times = told(&session);
    assert_eq!(times, 1, "one line an event:\n{}", session.target.log());
    session.target.stop();
}

/// Attaches a remote controller with a path to each of two peers; returns the second path and the name of the first.
async fn attach_both(session: &Session, multipath: &str, peers: &[Peer; 2]) -> (Attached, String) {
    let id = unique("two");
    let controller = remote_controller(&session.client, &id, multipath).await;
    let made = async |at: usize| {
        let path = tcp_path(peers[at].port, NQN);
        let paths = session.of("NvmePath");
        name_of(&paths.created(&controller, &format!("p{at}"), path).await)
    };
    let (first, path) = (made(0).await, made(1).await);
    let attached = Attached {
        id,
        controller,
        path,
    };
    (attached, first)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn io_that_one_path_does_not_answer_goes_to_the_other() {
    let mut session = Session::with(&["--remote-io-timeout", "2"]).await;
    let peers = [Peer::start(), Peer::start()];
    let (attached, first_path) = attach_both(&session, "FAILOVER", &peers).await;
    let mut export = session.export(&attached).await;
    peers[0].script(|ask| match ask.is_io(2) {
        true => Turn::Silent,
        false => Turn::Right,
    });
    let first = read(&mut export, 0, 8);
    // With one connection at a time, I/O has no path during the failover: it is answered in time, with an error or not.
    let answered = first.as_ref().map_or_else(
        |error| error.to_string().contains("status"),
        |data| data.len() == 4096,
    );
    assert!(answered, "{first:?}\n{}", session.target.log());
    let data = eventually("the other path takes I/O", END, async || {
        read(&mut export, 0, 8).ok()
    })
    .await;
    assert!(data.iter().all(|byte| *byte == 0));
    assert!(peers[1].asked(false, 2) > 0);
    session.withdraw(export).await;
    session.ends("NvmePath", &first_path).await;
    session.detach(attached).await;
    session.unharmed("two paths").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn io_that_one_of_two_connected_paths_does_not_answer_succeeds_by_the_other() {
    let mut session = Session::with(&["--remote-io-timeout", "2"]).await;
    let peers = [Peer::start(), Peer::start()];
    // Controllers of one subsystem have different controller IDs.
    for (id, peer) in (1..).zip(&peers) {
        peer.change(|data| data.put(78, &[id, 0]));
    }
    let (attached, first_path) = attach_both(&session, "MULTIPATH", &peers).await;
    let mut export = session.export(&attached).await;
    let swallowed = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&swallowed);
    // The path that gets the first read does not answer it.
    for peer in &peers {
        let seen = Arc::clone(&seen);
        peer.script(move |ask| {
            if ask.is_io(2) && seen.fetch_add(1, Ordering::Relaxed) == 0 {
                return Turn::Silent;
            }
            Turn::Right
        });
    }
    let data = read(&mut export, 0, 8);
    let data = data.unwrap_or_else(|error| panic!("{error}\n{}", session.target.log()));
    assert!(data.iter().all(|byte| *byte == 0));
    assert!(
        swallowed.load(Ordering::Relaxed) > 1,
        "nothing was swallowed"
    );
    session.withdraw(export).await;
    session.ends("NvmePath", &first_path).await;
    session.detach(attached).await;
    session.unharmed("two connected paths").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_silent_on_its_admin_queue_is_noticed_and_can_be_deleted() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let attached = session.attach(&peer).await.expect("the peer does right");
    peer.mute(true);
    let before = peer.connections();
    // The Keep Alive timeout of 5 s, plus up to half of that until the next Keep Alive.
    eventually(
        "the path is given up",
        Duration::from_secs(12),
        async || (peer.connections() > before).then_some(()),
    )
    .await;
    session.detach(attached).await;
    drop(peer);
    session.unharmed("P15").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_whose_peer_has_just_fallen_silent_can_be_deleted() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let attached = session.attach(&peer).await.expect("the peer does right");
    peer.mute(true);
    session.detach(attached).await;
    drop(peer);
    session.unharmed("P15, at once").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_being_connected_in_vain_can_be_deleted() {
    let mut session = Session::start().await;
    for multipath in ["DISABLE", "FAILOVER"] {
        let peer = Peer::start();
        let id = unique("vain");
        let controller = remote_controller(&session.client, &id, multipath).await;
        let paths = session.of("NvmePath");
        let path = name_of(
            &paths
                .created(&controller, "first", tcp_path(peer.port, NQN))
                .await,
        );
        let other = Peer::start();
        if multipath == "FAILOVER" {
            paths
                .created(&controller, "second", tcp_path(other.port, NQN))
                .await;
            other.mute(true);
        }
        peer.mute(true);
        let before = peer.connections();
        peer.close_all();
        eventually("it is connected anew", END, async || {
            (peer.connections() > before || other.connections() > 2).then_some(())
        })
        .await;
        session.ends("NvmePath", &path).await;
        if multipath == "FAILOVER" {
            session
                .ends("NvmePath", &format!("{controller}/nvmePaths/second"))
                .await;
        }
        session.ends("NvmeRemoteController", &controller).await;
        drop((peer, other));
        session.unharmed(&format!("P18, {multipath}")).await;
    }
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_goes_nowhere_holds_up_no_end_of_another_path() {
    let mut session = Session::start().await;
    let good = Peer::start();
    let id = unique("slow");
    let controller = remote_controller(&session.client, &id, "MULTIPATH").await;
    let paths = session.of("NvmePath");
    let path = name_of(
        &paths
            .created(&controller, "good", tcp_path(good.port, NQN))
            .await,
    );
    // The peer answers ICReq, so that SPDK connects, but no Connect command.
    let slow = Peer::start();
    slow.script(|_| Turn::Silent);
    let making = paths.create(&controller, "slow", tcp_path(slow.port, NQN));
    let ending = async {
        eventually("it is being connected", END, async || {
            (slow.connections() >= 2).then_some(())
        })
        .await;
        session.ends("NvmePath", &path).await;
    };
    tokio::select! {
        made = making => panic!("{made:?} came first"),
        () = ending => {}
    }
    drop((slow, good));
    eventually("the attempt ends", Duration::from_secs(15), async || {
        let gone = session.of("NvmeRemoteController").delete(&controller).await;
        gone.is_ok().then_some(())
    })
    .await;
    session.unharmed("P18, another path").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_path_that_answers_no_goodbye_stops_nobody() {
    let mut session = Session::start().await;
    let (first, second) = (Peer::start(), Peer::start());
    let id = unique("goodbye");
    let controller = remote_controller(&session.client, &id, "FAILOVER").await;
    let paths = session.of("NvmePath");
    let one = name_of(
        &paths
            .created(&controller, "one", tcp_path(first.port, NQN))
            .await,
    );
    // A standby path is connected once to be checked, and disconnected with a shutdown (CC.SHN).
    let goodbyes = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&goodbyes);
    second.script(move |ask| {
        let is_cc = ask.is_fabrics(0) && ask.dword(11) == 0x14;
        if is_cc && ask.dword(12) >> 14 & 3 != 0 {
            seen.fetch_add(1, Ordering::Relaxed);
            return Turn::Silent;
        }
        Turn::Right
    });
    let begin = Instant::now();
    let two = name_of(
        &paths
            .created(&controller, "two", tcp_path(second.port, NQN))
            .await,
    );
    let made = begin.elapsed();
    // Without waiting the 10 s that the peer is granted for its shutdown.
    assert!(made < END, "the path took {made:?}");
    eventually("it is told goodbye", END, async || {
        (goodbyes.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
    session.bystander.verify();
    session.ends("NvmePath", &two).await;
    session.ends("NvmePath", &one).await;
    session.ends("NvmeRemoteController", &controller).await;
    drop((first, second));
    session.unharmed("a goodbye that is not answered").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_that_it_needs_two_minutes_is_given_up_in_time() {
    let mut session = Session::start().await;
    // A listener that accepts nobody, and a controller that never gets ready: CAP.TO is 127.5 s, CSTS.RDY stays 0.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let nobody = listener.local_addr().expect("an address").port();
    let never = Peer::start();
    never.change(|data| data.capabilities |= 0xff << 24);
    never.script(
        |ask| match ask.is_fabrics(4) && ask.dword(11) == 0x1c && ask.queue == 0 {
            true => Turn::Send(vec![Resp::of(ask.cid()).bytes()]),
            false => Turn::Right,
        },
    );
    for port in [nobody, never.port] {
        let controller = remote_controller(&session.client, &unique("late"), "DISABLE").await;
        let request = json!({ "parent": controller, "nvme_path_id": "path", "nvme_path": tcp_path(port, NQN) });
        let begin = Instant::now();
        // The deadline of the call itself is 15 s.
        let made = session.client.call("CreateNvmePath", request).await;
        assert!(made.is_err(), "{made:?}");
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(14), "{took:?}");
        // The attempt has ended, and not only the call.
        session.ends("NvmeRemoteController", &controller).await;
    }
    let before = never.connections();
    session.bystander.verify();
    assert_eq!(never.connections(), before, "it is still being connected");
    drop((listener, never));
    session.unharmed("peers that are never ready").await;
    session.target.stop();
}
