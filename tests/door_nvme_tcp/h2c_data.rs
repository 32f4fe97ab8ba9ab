//! H2CData: accepted only as an R2T asked for it, in order, and each range once.

use crate::common::nvme_tcp::{Answer, Command, Digests, Host, Pdu, Sgl, kind};
use crate::world::{World, ends, terminated};

/// A description of the violation, and how to build its PDU from a transfer tag and a block.
type Variation = (&'static str, fn(u16, &[u8]) -> Pdu);

/// Sends a command whose data is transferred by R2T; returns the R2T.
fn asked(host: &mut Host, command: Command) -> Answer {
    host.send(&Pdu::capsule(command, &[])).expect("a capsule");
    let answer = host.receive().expect("an R2T");
    assert_eq!(answer.kind, kind::R2T, "{answer:?}");
    answer
}

/// Regression: offset and length whose sum overflows 32 bits wrote the payload beyond the buffer.
#[tokio::test]
async fn a_length_that_wraps_ends_the_connection() {
    let mut world = World::new().await;
    let mut host = world.stranger(Digests::DATA);
    let data = world.identity.connect_data(0xffff);
    let (ttag, _, length) =
        asked(&mut host, Command::connect(1, 0, 31, Sgl::Transport(1024))).r2t();
    assert_eq!(length, 1024);
    let first = Pdu::h2c_data(1, ttag, 0, &data[..512]).with_flags(0);
    let second = Pdu::h2c_data(1, ttag, 512, &vec![0x41; 1 << 20]).with_datal(0xffff_fe00);
    let second = second.with_plen(24_u32.wrapping_add(0xffff_fe00).wrapping_add(4));
    ends(&mut host, &[first, second], "a sum beyond 32 bits");
    drop(host);
    world.unharmed("H2CData that wraps").await;
}

#[tokio::test]
async fn connect_by_r2t_in_parts_succeeds() {
    let mut world = World::new().await;
    let mut host = world.stranger(Digests::BOTH);
    let data = world.identity.connect_data(0xffff);
    let (ttag, ..) = asked(&mut host, Command::connect(1, 0, 31, Sgl::Transport(1024))).r2t();
    let parts = [
        Pdu::h2c_data(1, ttag, 0, &data[..4]).with_flags(0),
        Pdu::h2c_data(1, ttag, 4, &data[4..516]).with_flags(0),
        Pdu::h2c_data(1, ttag, 516, &data[516..]),
    ];
    host.send_all(&parts).expect("the parts");
    let (answer, _) = host.completion(1, &[]).expect("an answer");
    assert_eq!(answer.status(), 0);
    host.enable().expect("the controller becomes ready");
    drop(host);
    world.unharmed("Connect by R2T").await;
}

/// Every field of an H2CData that can be wrong while its request waits for data.
#[tokio::test]
async fn data_that_was_not_asked_for_ends_the_connection() {
    let mut world = World::new().await;
    let admin = world.identity.admin(Digests::OFF);
    let block = [3; 512];
    let wrong: [Variation; 11] = [
        ("length 0", |ttag, _| {
            Pdu::h2c_data(1, ttag, 0, &[]).with_flags(0)
        }),
        ("length 0 at the end", |ttag, _| {
            Pdu::h2c_data(1, ttag, 4096, &[])
        }),
        ("tag 0", |_, data| Pdu::h2c_data(1, 0, 0, data)),
        ("a tag of nobody", |_, data| {
            Pdu::h2c_data(1, 0xffff, 0, data)
        }),
        ("a tag that is free", |ttag, data| {
            Pdu::h2c_data(1, ttag + 1, 0, data)
        }),
        ("another command", |ttag, data| {
            Pdu::h2c_data(2, ttag, 0, data)
        }),
        ("a later part", |ttag, data| {
            Pdu::h2c_data(1, ttag, 512, data)
        }),
        ("beyond the end", |ttag, data| {
            Pdu::h2c_data(1, ttag, 0, &data.repeat(9))
        }),
        ("the last too early", |ttag, data| {
            Pdu::h2c_data(1, ttag, 0, data)
        }),
        ("the last not marked", |ttag, data| {
            Pdu::h2c_data(1, ttag, 0, &data.repeat(8)).with_flags(0)
        }),
        ("shorter than its PDU", |ttag, data| {
            Pdu::h2c_data(1, ttag, 0, data)
                .with_datal(508)
                .with_flags(0)
        }),
    ];
    for (qid, (what, pdu)) in (1..).zip(wrong) {
        let mut io = world.identity.io(&admin, qid);
        let write = Command::io(1, 1, 1, 0, 8).sgl(Sgl::Transport(4096));
        let (ttag, ..) = asked(&mut io, write).r2t();
        ends(&mut io, &[pdu(ttag, &block)], what);
    }
    drop(admin);
    world.unharmed("H2CData that was not asked for").await;
}

/// Regression: the same range twice in one send, the second payload later, was written to a buffer already returned.
#[tokio::test]
async fn the_same_range_is_taken_once() {
    let mut world = World::new().await;
    let (mut admin, mut io) = world.admitted(Digests::DATA);
    for lba in 0..3 {
        let write = Command::io(1, 1, 1, lba * 8, 8).sgl(Sgl::Transport(4096));
        let (ttag, ..) = asked(&mut io, write).r2t();
        let whole = Pdu::h2c_data(1, ttag, 0, &[0x11; 4096]);
        let again = Pdu::h2c_data(1, ttag, 0, &[0x22; 4096]).bytes(io.digests);
        let mut bytes = whole.bytes(io.digests);
        bytes.extend(&again[..24]);
        io.send_bytes(&bytes).expect("one send");
        world.bystander.verify();
        let _ = io.send_bytes(&again[24..]);
        let (mut ended, mut written) = (false, false);
        while let Ok(answer) = io.receive_within(std::time::Duration::from_secs(3)) {
            match answer.kind {
                kind::C2H_TERM_REQ => ended = true,
                _ => written = answer.status() == 0,
            }
            if ended && written {
                break;
            }
        }
        assert!(
            ended,
            "the second H2CData was taken (the write completed: {written})"
        );
        world.bystander.verify();
        let identity = world.identity.clone().named(&format!("again-{lba}"));
        admin = identity.admin(Digests::DATA);
        io = identity.io(&admin, 1);
    }
    drop((admin, io));
    world.unharmed("a range twice").await;
}

/// A write with in-capsule data, whose tag an H2CData names before the digest is verified.
#[tokio::test]
async fn a_write_with_its_data_inside_takes_no_other() {
    let mut world = World::new().await;
    let (mut admin, mut io) = world.admitted(Digests::DATA);
    let write = Command::io(1, 1, 1, 0, 8).sgl(Sgl::InCapsule(4096));
    // Tags are allocated in order, so one of the first belongs to the write.
    for ttag in 1..=4 {
        let mut bytes = Pdu::capsule(write, &[5; 4096]).bytes(io.digests);
        bytes.extend(Pdu::h2c_data(1, ttag, 0, &[6; 4096]).bytes(io.digests));
        io.send_bytes(&bytes).expect("one send");
        let mut completions = 0;
        loop {
            match io.receive_within(std::time::Duration::from_secs(3)) {
                Ok(answer) if answer.kind == kind::CAPSULE_RESP => completions += 1,
                Ok(answer) => {
                    assert_eq!(answer.kind, kind::C2H_TERM_REQ, "{answer:?}");
                    break;
                }
                Err(_) => break,
            }
        }
        assert!(
            completions <= 1,
            "tag {ttag}: the write was answered {completions} times"
        );
        let identity = world.identity.clone().named(&format!("host-{ttag}"));
        admin = identity.admin(Digests::DATA);
        io = identity.io(&admin, 1);
        assert!(
            io.read(1, 0, 8)
                .expect("a read")
                .iter()
                .all(|byte| *byte != 6),
            "tag {ttag}"
        );
    }
    drop((admin, io));
    world.unharmed("H2CData for data inside").await;
}

/// A wrong data digest fails only its command, and the data is not written.
#[tokio::test]
async fn data_with_a_wrong_digest_is_not_written() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::DATA);
    let first = io.write(1, 0, &[1; 4096]).expect("a write");
    assert_eq!(first.status(), 0);
    let write = Command::io(1, 900, 1, 0, 8).sgl(Sgl::Transport(4096));
    let (ttag, ..) = asked(&mut io, write).r2t();
    let mut data = Pdu::h2c_data(900, ttag, 0, &[2; 4096]);
    data.data_digest = Some(1);
    io.send(&data).expect("data");
    let (answer, _) = io.completion(900, &[]).expect("an answer");
    assert_eq!(answer.status(), 0x22, "transient transport error");
    assert_eq!(io.read(1, 0, 8).expect("a read"), vec![1; 4096]);
    drop((admin, io));
    world.unharmed("a wrong data digest").await;
}

/// Before Connect no tag is valid.
#[tokio::test]
async fn strangers_cannot_send_data() {
    let mut world = World::new().await;
    for ttag in [0, 1, 2, 128, 129, 0xffff] {
        let mut host = world.stranger(Digests::OFF);
        host.send(&Pdu::h2c_data(0, ttag, 0, &[1; 512]))
            .expect("data");
        terminated(&mut host, &format!("tag {ttag}"));
    }
    world.unharmed("data of strangers").await;
}

/// A request keeps its data in the processor's cache if it is used again at once: an R2T names the request.
#[tokio::test]
async fn the_request_that_ended_last_is_the_next_one() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::OFF);
    let mut tags = std::collections::BTreeSet::new();
    for lba in 0..8 {
        let write = Command::io(1, 1, 1, lba * 8, 8).sgl(Sgl::Transport(4096));
        let (ttag, ..) = asked(&mut io, write).r2t();
        io.send(&Pdu::h2c_data(1, ttag, 0, &[0x33; 4096]))
            .expect("the data");
        assert_eq!(io.receive().expect("a response").status(), 0);
        tags.insert(ttag);
    }
    assert_eq!(tags.len(), 1, "{tags:?}");
    drop((admin, io));
    world.unharmed("one request after the other").await;
}
