//! PDUs that do not belong to their command, or come at the wrong time.

use std::sync::atomic::{AtomicBool, Ordering};

use super::session::{Session, read};
use crate::common::nvme_tcp::{Command, flag};
use crate::common::nvme_tcp_peer::{Ask, Peer, Resp, Turn, c2h_data, r2t, term_req};

/// What the peer does instead of answering correctly; None to answer correctly.
type Misstep = fn(&Ask) -> Option<Turn>;

/// What the peer sends, once, for an I/O command of the attacked opcode.
type Attack = fn(&Ask) -> Turn;

/// Answers correctly except for the first command with this opcode.
fn once(opcode: u8, attack: Attack) -> impl FnMut(&Ask) -> Turn + Send {
    let done = AtomicBool::new(false);
    move |ask| match ask.is_io(opcode) && !done.swap(true, Ordering::Relaxed) {
        true => attack(ask),
        false => Turn::Right,
    }
}

/// Replaces one byte of the common header.
fn with_byte(mut pdu: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    pdu[at] = byte;
    pdu
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_ends_right_whatever_its_peer_sends_for_it_once() {
    let attacks: [(&str, Attack); 13] = [
        ("P2: R2T for a read", |ask| {
            Turn::First(vec![r2t(ask.cid(), 1, 0, 512)])
        }),
        ("P12: success without data", |ask| {
            Turn::Send(vec![Resp::of(ask.cid()).bytes()])
        }),
        ("P12: half of the data, with success", |ask| {
            let flags = flag::LAST | flag::SUCCESS;
            Turn::Send(vec![c2h_data(ask.cid(), 0, &[0xa5; 2048], flags, None)])
        }),
        ("P13: TermReq with a read outstanding", |_| {
            Turn::Send(vec![term_req(1)])
        }),
        ("H11: TermReq of the last reason in the table", |_| {
            Turn::Send(vec![term_req(6)])
        }),
        ("P13: data of length 0", |ask| {
            Turn::First(vec![c2h_data(ask.cid(), 0, &[], 0, None)])
        }),
        ("P13: data longer than told", |ask| {
            Turn::First(vec![c2h_data(ask.cid(), 0, &[1; 1024], 0, Some(512))])
        }),
        ("P13: data at another offset", |ask| {
            Turn::First(vec![c2h_data(ask.cid(), 512, &[1; 512], 0, None)])
        }),
        ("P13: data of a command that is not there", |_| {
            Turn::First(vec![c2h_data(0xfffe, 0, &[1; 512], 0, None)])
        }),
        ("data beyond the buffer in 32 bits", |ask| {
            let first = c2h_data(ask.cid(), 0, &[1; 512], 0, None);
            Turn::Send(vec![
                first,
                c2h_data(ask.cid(), 512, &[2; 512], 0, Some(0xffff_fe00)),
            ])
        }),
        ("a data offset beyond the header's buffer", |ask| {
            let pdu = c2h_data(ask.cid(), 0, &[0x41; 4096], 0, Some(3870));
            Turn::Send(vec![with_byte(pdu, 3, 250)])
        }),
        ("P17: data after the response", |ask| {
            let data = c2h_data(ask.cid(), 0, &[0; 4096], flag::LAST, None);
            let resp = Resp::of(ask.cid()).bytes();
            Turn::Send(vec![data, resp, c2h_data(ask.cid(), 0, &[7; 512], 0, None)])
        }),
        ("two responses", |ask| {
            let data = c2h_data(ask.cid(), 0, &[0; 4096], flag::LAST, None);
            let resp = Resp::of(ask.cid()).bytes();
            Turn::Send(vec![data, resp.clone(), resp])
        }),
    ];
    let mut session = Session::start().await;
    for (what, attack) in attacks {
        let peer = Peer::start();
        let (attached, mut export) = session.attach_and_export(&peer).await;
        peer.script(once(2, attack));
        for _ in 0..3 {
            let data = read(&mut export, 0, 8).unwrap_or_else(|error| {
                panic!("{what}: {error}\n{}", session.target.log());
            });
            assert!(data.iter().all(|byte| *byte == 0), "{what}: {data:?}");
        }
        session.withdraw(export).await;
        session.detach(attached).await;
        session.unharmed(what).await;
    }
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_sends_no_byte_that_is_not_its_own() {
    let attacks: [(&str, Attack); 4] = [
        ("P3: R2T whose sum is 0 in 32 bits", |ask| {
            Turn::Send(vec![
                r2t(ask.cid(), 1, 0, 512),
                r2t(ask.cid(), 2, 512, 0xffff_fe00),
            ])
        }),
        ("P3: two R2Ts of one offset", |ask| {
            Turn::Send(vec![r2t(ask.cid(), 1, 0, 4096), r2t(ask.cid(), 2, 0, 4096)])
        }),
        ("R2T for nothing", |ask| {
            Turn::First(vec![r2t(ask.cid(), 1, 0, 0)])
        }),
        ("success without having asked for data", |ask| {
            Turn::Send(vec![Resp::of(ask.cid()).bytes()])
        }),
    ];
    let mut session = Session::start().await;
    for (what, attack) in attacks {
        let peer = Peer::start();
        let (attached, mut export) = session.attach_and_export(&peer).await;
        peer.script(once(1, attack));
        let data = [0xc3; 4096];
        let written = export.io.write(1, 8, &data).unwrap_or_else(|error| {
            panic!("{what}: {error}\n{}", session.target.log());
        });
        assert_eq!(written.status(), 0, "{what}");
        assert_eq!(peer.disk(4096, 4096), data, "{what}");
        assert!(peer.taken() <= 3 * 4096, "{what}: {} bytes", peer.taken());
        session.withdraw(export).await;
        session.detach(attached).await;
        session.unharmed(what).await;
    }
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeroes_stay_zeroes_when_a_peer_answers_a_write_with_data() {
    let mut session = Session::start().await;
    let peer = Peer::start();
    let (attached, mut export) = session.attach_and_export(&peer).await;
    // Without Write Zeroes at the peer, SPDK writes zeroes from one buffer that the whole process shares.
    let zeroes = |io: &mut crate::common::nvme_tcp::Host| {
        let cid = io.cid();
        io.call(Command::io(8, cid, 1, 0, 8), &[])
    };
    assert!(export.io.write(1, 0, &[0xff; 4096]).is_ok());
    peer.script(once(1, |ask| {
        let data = vec![0x66; ask.length() as usize];
        Turn::First(vec![c2h_data(ask.cid(), 0, &data, flag::LAST, None)])
    }));
    for round in 0..2 {
        let answer = zeroes(&mut export.io).expect("an answer");
        assert_eq!(answer.status(), 0, "round {round}");
        assert!(
            peer.disk(0, 4096).iter().all(|byte| *byte == 0),
            "round {round}"
        );
    }
    session.withdraw(export).await;
    session.detach(attached).await;
    session.unharmed("P4").await;
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attach_is_refused_when_its_commands_are_answered_wrongly() {
    let attacks: [(&str, Misstep); 4] = [
        ("R2T for Identify", |ask| {
            let pdu = r2t(ask.cid(), 1, 0, 4096);
            ask.is_identify(1).then(|| Turn::First(vec![pdu]))
        }),
        ("R2T for Connect, whose data was in its capsule", |ask| {
            let pdus = vec![
                r2t(ask.cid(), 1, 0, 512),
                r2t(ask.cid(), 2, 512, 0xffff_fe00),
            ];
            ask.is_fabrics(1).then_some(Turn::First(pdus))
        }),
        ("Identify without data", |ask| {
            let pdu = Resp::of(ask.cid()).bytes();
            ask.is_identify(1).then(|| Turn::Send(vec![pdu]))
        }),
        ("C2HData for a property", |ask| {
            let pdu = c2h_data(ask.cid(), 0, &[1; 64], 0, None);
            ask.is_fabrics(4).then(|| Turn::First(vec![pdu]))
        }),
    ];
    let mut session = Session::start().await;
    for (what, attack) in attacks {
        let peer = Peer::start();
        peer.script(move |ask| attack(ask).unwrap_or(Turn::Right));
        let Err(status) = session.attach(&peer).await else {
            panic!("{what}: it is attached");
        };
        assert_eq!(
            status.code(),
            tonic::Code::FailedPrecondition,
            "{what}: {status}"
        );
        assert_eq!(peer.taken(), 0, "{what}");
        drop(peer);
        session.unharmed(what).await;
    }
    session.target.stop();
}
