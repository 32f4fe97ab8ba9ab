//! Identify data and log pages of a peer with values out of all bounds.

use std::time::{Duration, Instant};

use tonic::Code;

use super::session::{END, Session, read};
use crate::common::nvme_tcp_peer::{Data, Peer, Turn};
use crate::common::{eventually, metrics};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_out_of_bounds_is_refused_with_the_reason() {
    let with = |change: fn(&mut Data)| {
        let mut data = Data::new(&[1]);
        change(&mut data);
        data
    };
    let cases = [
        (
            "P7: version 1.0 with 2^32 - 1 namespaces",
            with(|data| {
                data.version = 0x0001_0000;
                data.put(516, &[0xff; 4]);
            }),
            "more namespaces than 1024",
        ),
        (
            "P8: a list without an end",
            with(|data| {
                data.put(516, &[0xff; 4]);
                data.list = Some(|after| (after + 1..=after + 1024).collect());
            }),
            "more namespaces than 1024",
        ),
        (
            "P8: the same page again and again",
            with(|data| data.list = Some(|_| (1..=1024).collect())),
            "does not ascend",
        ),
        (
            "P9: a namespace above the highest",
            with(|data| data.list = Some(|_| vec![1, 5000])),
            "above the controller's highest",
        ),
        (
            "more ANA groups than there is memory for",
            with(|data| {
                data.put(76, &[1 << 1 | 1 << 3]);
                data.put(348, &[0xff; 4]);
            }),
            "more ANA groups",
        ),
        (
            "a smallest page of 128 MiB",
            with(|data| data.capabilities |= 15 << 48),
            "smallest page",
        ),
    ];
    let mut session = Session::start().await;
    for (what, data, reason) in cases {
        let peer = Peer::with(data);
        let begin = Instant::now();
        let Err(status) = session.attach(&peer).await else {
            panic!("{what}: it is attached");
        };
        assert_eq!(status.code(), Code::FailedPrecondition, "{what}: {status}");
        assert!(status.message().contains(reason), "{what}: {status}");
        assert!(begin.elapsed() < END, "{what}: {:?}", begin.elapsed());
        drop(peer);
        session.unharmed(what).await;
    }
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ana_log_page_is_read_no_further_than_it_is_long() {
    let mut data = Data::new(&[1]);
    data.put(76, &[1 << 1 | 1 << 3]);
    data.put(342, &[10]);
    data.put(344, &32_u32.to_le_bytes());
    data.put(348, &32_u32.to_le_bytes());
    data.put(540, &32_u32.to_le_bytes());
    // 65,535 descriptors, each of which claims 2^30 namespaces.
    data.ana = vec![0; 16];
    data.ana[8..10].copy_from_slice(&[0xff; 2]);
    for _ in 0..64 {
        data.ana.extend([1, 0, 0, 0, 0, 0, 0, 0x40]);
        data.ana.extend([0; 8]);
        data.ana.extend([1; 16]);
    }
    let mut session = Session::start().await;
    for what in ["P6: long descriptors", "P6: descriptors without namespaces"] {
        let peer = Peer::with(data.clone());
        let (attached, mut export) = session.attach_and_export(&peer).await;
        read(&mut export, 0, 8).expect("a namespace of no group is accessible");
        session.withdraw(export).await;
        session.detach(attached).await;
        session.unharmed(what).await;
        for descriptor in data.ana[16..].chunks_mut(32) {
            descriptor[4..8].fill(0);
        }
    }
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_that_cannot_be_computed_with_are_left_out() {
    let cases: [(&str, usize, &[u8]); 6] = [
        ("blocks of a byte", 130, &[0]),
        ("blocks of 2^255 bytes", 130, &[255]),
        ("no format", 26, &[5]),
        ("more than 2^63 bytes", 0, &[0xff; 16]),
        ("more metadata than data", 128, &[0xff, 0xff]),
        (
            "protection information of a kind that is not there",
            29,
            &[7],
        ),
    ];
    let mut session = Session::start().await;
    for (what, at, bytes) in cases {
        let mut data = Data::new(&[1, 2]);
        data.put_in(1, at, bytes);
        let peer = Peer::with(data);
        let attached = session.attach(&peer).await.expect("namespace 2 is right");
        session.namespaces(&attached, 1).await;
        session.detach(attached).await;
        session.unharmed(what).await;
    }
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_size_that_changes_takes_the_volume_away() {
    let mut session = Session::start().await;
    for reconnects in [false, true] {
        let what = format!("P5, by a reconnect: {reconnects}");
        let peer = Peer::start();
        let (attached, mut export) = session.attach_and_export(&peer).await;
        read(&mut export, 0, 1).expect("a read");
        peer.change(|data| data.put_in(1, 130, &[15]));
        if reconnects {
            peer.close_all();
        } else {
            assert_eq!(peer.tell_of_namespaces(), 1, "{what}");
        }
        eventually("the namespace goes with its volume", END, async || {
            // A concurrent listing of all volumes skips a volume that is being deleted.
            let scraped = metrics(session.target.http);
            assert!(scraped.starts_with("HTTP/1.1 200"), "{scraped}");
            let answer = read(&mut export, 0, 1);
            answer.is_err().then_some(())
        })
        .await;
        drop(export.io);
        session.ends("NvmeNamespace", &export.namespace).await;
        session.ends("NvmeController", &export.controller).await;
        session.ends("NvmeSubsystem", &export.subsystem).await;
        session.detach(attached).await;
        session.unharmed(&what).await;
    }
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_cannot_have_the_reactor_wait_for_it_at_attach() {
    let mut session = Session::start().await;
    let mut data = Data::new(&[1]);
    // Security Send and Receive supported: unpatched SPDK reads a security protocol synchronously during the attach.
    data.put(256, &[1]);
    let peer = Peer::with(data);
    peer.script(|ask| match ask.is_admin(0x82) {
        true => Turn::Silent,
        false => Turn::Right,
    });
    let begin = Instant::now();
    let attached = session.attach(&peer).await.expect("it is attached");
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    session.detach(attached).await;
    session.unharmed("security protocols of a peer").await;
    session.target.stop();
}
