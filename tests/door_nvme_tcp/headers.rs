//! Common headers: the lengths and offsets of each PDU type, and the order of PDUs.

use crate::common::nvme_tcp::{Command, Digests, Identity, Pdu, Sgl, kind};
use crate::world::{World, ends};

/// Regression: two writes with a data offset beyond the receive buffer of a header used the management PDU twice, and
/// the reactor never returned.
#[tokio::test]
async fn a_data_offset_beyond_128_ends_the_connection_once() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::DATA);
    let write = |cid| {
        let command = Command::io(1, cid, 1, 0, 1).sgl(Sgl::InCapsule(512));
        let mut pdu = Pdu::capsule(command, &[7; 512]).with_pdo(132);
        pdu.padding = 60;
        pdu
    };
    ends(&mut io, &[write(1), write(2)], "PDO 132");
    drop((admin, io));
    world.unharmed("PDO 132").await;
}

#[tokio::test]
async fn a_data_offset_inside_the_header_ends_the_connection() {
    let mut world = World::new().await;
    let admin = world.identity.admin(Digests::OFF);
    for (qid, pdo) in (1..).zip([0, 1, 8, 71, 73, 129, 200, 255]) {
        let mut io = world.identity.io(&admin, qid);
        let command = Command::io(1, 1, 1, 0, 1).sgl(Sgl::InCapsule(512));
        let pdu = Pdu::capsule(command, &[7; 512]).with_pdo(pdo);
        ends(&mut io, &[pdu], &format!("PDO {pdo}"));
    }
    drop(admin);
    world.unharmed("data offsets").await;
}

/// Padding up to the largest data offset is valid.
#[tokio::test]
async fn a_data_offset_of_128_is_served() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::BOTH);
    let command = Command::io(1, 1, 1, 0, 1).sgl(Sgl::InCapsule(512));
    let mut pdu = Pdu::capsule(command, &[9; 512]);
    pdu.padding = 128 - 72 - 4;
    io.send(&pdu).expect("the capsule is sent");
    let (answer, _) = io.completion(1, &[]).expect("an answer");
    assert_eq!(answer.status(), 0);
    assert_eq!(io.read(1, 0, 1).expect("a read"), vec![9; 512]);
    drop((admin, io));
    world.unharmed("PDO 128").await;
}

#[tokio::test]
async fn a_pdu_that_must_not_come_ends_the_connection() {
    let mut world = World::new().await;
    let keep_alive = Pdu::capsule(Command::new(0x18, 1), &[]);
    let data = Pdu::h2c_data(1, 1, 0, &[1; 64]);
    let of_kind = |kind| Pdu {
        kind,
        header: vec![0; 16],
        ..Pdu::default()
    };
    let of_target = [
        kind::IC_RESP,
        kind::C2H_TERM_REQ,
        kind::CAPSULE_RESP,
        kind::C2H_DATA,
        kind::R2T,
        0x08,
        0x0a,
        0xff,
    ];
    let before: Vec<Pdu> = [keep_alive.clone(), data.clone()]
        .into_iter()
        .chain(of_target.map(of_kind))
        .collect();
    for pdu in &before {
        let mut host = world.identity.dial().expect("a connection");
        ends(
            &mut host,
            std::slice::from_ref(pdu),
            &format!("first: {pdu:?}"),
        );
    }
    let again = [Pdu::ic_req(Digests::OFF)];
    let wrong_lengths = [
        keep_alive.clone().with_hlen(71),
        keep_alive.clone().with_hlen(0),
        keep_alive.clone().with_plen(8),
        keep_alive.clone().with_plen(73),
        keep_alive.with_plen(u32::MAX),
        data.clone().with_plen(u32::MAX),
        data.with_hlen(255),
    ];
    for pdu in again.iter().chain(&before).chain(&wrong_lengths) {
        let mut host = world.stranger(Digests::OFF);
        ends(
            &mut host,
            std::slice::from_ref(pdu),
            &format!("second: {pdu:?}"),
        );
    }
    world.unharmed("PDUs out of order").await;
}

/// Digest flags other than negotiated would make header and data ambiguous.
#[tokio::test]
async fn digests_other_than_negotiated_end_the_connection() {
    let mut world = World::new().await;
    let identity: &Identity = &world.identity;
    for (agreed, sent) in [
        (Digests::OFF, Digests::BOTH),
        (Digests::BOTH, Digests::OFF),
        (Digests::DATA, Digests::OFF),
        (Digests::OFF, Digests::DATA),
    ] {
        let mut host = identity.negotiated(agreed);
        host.digests = sent;
        let connect = Command::connect(1, 0, 31, Sgl::InCapsule(1024));
        let pdu = Pdu::capsule(connect, &identity.connect_data(0xffff));
        ends(
            &mut host,
            &[pdu],
            &format!("{agreed:?} agreed, {sent:?} sent"),
        );
    }
    world.unharmed("digests").await;
}
