//! A peer that reconnects without a namespace while I/O to it is queued, and failover between paths that never connect:
//! pending I/O and resets end with an error.

use std::time::{Duration, Instant};

use serde_json::json;

use super::session::{END, Export, Session, read};
use crate::common::nvme_tcp_peer::{NQN, Peer, Turn};
use crate::common::{JsonRpc, Options, eventually, name_of, remote_controller, tcp_path, unique};

/// Makes the peer reconnect without its namespace, and without a notice.
async fn come_back_without(peer: &Peer) {
    let before = peer.connections();
    peer.change(|data| data.list = Some(|_| Vec::new()));
    peer.close_all();
    eventually("both queues are connected anew", END, async || {
        (peer.connections() >= before + 2).then_some(())
    })
    .await;
}

/// Reads on a thread of its own, which returns the export with the result.
fn reading(mut export: Export) -> std::thread::JoinHandle<(Export, std::io::Result<Vec<u8>>)> {
    std::thread::spawn(move || {
        let answer = read(&mut export, 0, 8);
        (export, answer)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn io_that_waits_for_a_namespace_that_was_left_out_ends_in_time() {
    let mut session = Session::with(&["--remote-io-timeout", "2"]).await;
    let peer = Peer::start();
    let (attached, export) = session.attach_and_export(&peer).await;
    come_back_without(&peer).await;
    let (export, answer) = reading(export).join().expect("it is answered");
    let error = answer.expect_err("there is no such namespace").to_string();
    assert!(
        error.contains("status"),
        "{error}: it is answered with an error\n{}",
        session.target.log()
    );
    session.withdraw(export).await;
    session.detach(attached).await;
    session.unharmed("a namespace that was left out").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_whose_io_waits_for_a_path_can_be_deleted() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let (attached, export) = session.attach_and_export(&peer).await;
    come_back_without(&peer).await;
    let shown = export.namespace.clone();
    let reading = reading(export);
    // The pause waits for the read only once SPDK has received it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!reading.is_finished(), "nothing waits");
    session.ends("NvmeNamespace", &shown).await;
    let (export, answer) = reading.join().expect("it is answered");
    answer.expect_err("there is no such namespace");
    session.ends("NvmeController", &export.controller).await;
    session.ends("NvmeSubsystem", &export.subsystem).await;
    drop(export);
    session.detach(attached).await;
    session.unharmed("a namespace that was left out").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_of_an_encrypted_volume_whose_peer_is_silent_can_be_deleted() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let attached = session.attach(&peer).await.expect("the peer does right");
    let object = json!({
        "volume_name_ref": format!("{}n1", attached.id),
        "key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=",
        "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
    });
    let encrypted = session.of("EncryptedVolume");
    let volume = name_of(&encrypted.created("", &unique("secret"), object).await);
    let export = session.export_volume(&volume).await;
    let before = peer.asked(false, 2);
    peer.script(|ask| match ask.is_io(2) {
        true => Turn::Silent,
        false => Turn::Right,
    });
    let shown = export.namespace.clone();
    let reading = reading(export);
    eventually("the read has come", END, async || {
        (peer.asked(false, 2) > before).then_some(())
    })
    .await;
    session.ends("NvmeNamespace", &shown).await;
    let (export, answer) = reading.join().expect("it is answered");
    answer.expect_err("nobody has answered");
    session.ends("NvmeController", &export.controller).await;
    session.ends("NvmeSubsystem", &export.subsystem).await;
    drop(export);
    session.ends("EncryptedVolume", &volume).await;
    session.detach(attached).await;
    session.unharmed("an encrypted volume").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_paths_that_take_turns_in_vain_is_answered() {
    let (options, socket) = Options::default().with_rpc();
    let mut session = Session::of_target(options).await;
    let peers = [Peer::start(), Peer::start()];
    let id = unique("turns");
    let controller = remote_controller(&session.client, &id, "FAILOVER").await;
    let paths = session.of("NvmePath");
    for (at, peer) in peers.iter().enumerate() {
        let path = tcp_path(peer.port, NQN);
        paths.created(&controller, &format!("p{at}"), path).await;
    }
    // An attempt at each peer takes the connect timeout of 10 s.
    for peer in &peers {
        peer.mute(true);
    }
    let mut rpc = JsonRpc::connect(&socket).await.expect("its socket");
    let begin = Instant::now();
    let reset = rpc.call("bdev_nvme_reset_controller", json!({ "name": id }));
    let answer = tokio::time::timeout(Duration::from_secs(30), reset).await;
    eprintln!("answered after {:?}", begin.elapsed());
    assert!(
        answer.is_ok_and(|answer| answer.is_err()),
        "not answered\n{}",
        session.target.log()
    );
    for path in ["p1", "p0"] {
        let path = format!("{controller}/nvmePaths/{path}");
        session.ends("NvmePath", &path).await;
    }
    session.ends("NvmeRemoteController", &controller).await;
    session.unharmed("paths that take turns").await;
    session.target.stop();
}
