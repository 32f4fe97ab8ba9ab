//! Command capsules: data only as the SGL describes, and no command before Connect.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::common::nvme_tcp::{Command, Digests, Pdu, Sgl, kind};
use crate::world::{World, ends};

/// Regression: one packet after ICReq crashed the process.
#[tokio::test]
async fn connect_without_its_1_kib_ends_the_connection() {
    let mut world = World::new().await;
    let data = world.identity.connect_data(0xffff);
    for length in [0, 1, 512, 1023] {
        let inside = &data[..length as usize];
        let mut host = world.stranger(Digests::OFF);
        let connect = Command::connect(1, 0, 31, Sgl::InCapsule(length));
        ends(
            &mut host,
            &[Pdu::capsule(connect, inside)],
            &format!("{length} inside"),
        );
    }
    for length in [0, 1, 1023, 1025, 131_072, u32::MAX] {
        let mut host = world.stranger(Digests::OFF);
        let connect = Command::connect(1, 0, 31, Sgl::Transport(length));
        ends(
            &mut host,
            &[Pdu::capsule(connect, &[])],
            &format!("{length} by R2T"),
        );
    }
    world.unharmed("lengths of Connect").await;
}

/// Regression: the SGL asks for 128 KiB by R2T while 4 bytes are in the capsule, which leaked all large buffers.
#[tokio::test]
async fn a_capsule_with_data_that_its_sgl_does_not_name_takes_no_buffer() {
    let mut world = World::new().await;
    let mut hosts = Vec::new();
    for _ in 0..8 {
        let mut host = world.stranger(Digests::OFF);
        let connect = Command::connect(1, 0, 31, Sgl::Transport(131_072));
        ends(
            &mut host,
            &[Pdu::capsule(connect, &[1; 4])],
            "4 bytes inside",
        );
        hosts.push(host);
    }
    world.bystander.verify();
    drop(hosts);
    world.unharmed("Connect with 4 bytes inside").await;
}

/// Regression: each byte beyond the header was taken for the next PDU, or the command was answered without end.
#[tokio::test]
async fn a_command_that_takes_no_data_has_none_in_its_capsule() {
    let mut world = World::new().await;
    let identify = Command::new(0x06, 1).cdw(10, 1);
    for (what, command) in [
        ("Identify by C2HData", identify.sgl(Sgl::Transport(4096))),
        ("Identify inside", identify.sgl(Sgl::InCapsule(4))),
        ("Keep Alive", Command::new(0x18, 1)),
        ("no direction", Command::new(0x83, 1).sgl(Sgl::InCapsule(4))),
    ] {
        let mut admin = world.identity.admin(Digests::OFF);
        let begin = Instant::now();
        ends(&mut admin, &[Pdu::capsule(command, &[0; 4])], what);
        assert!(begin.elapsed() < Duration::from_secs(2), "{what}");
    }
    world.unharmed("data that is not taken").await;
}

#[tokio::test]
async fn data_inside_is_as_long_as_the_sgl_says_and_within_the_limit() {
    let mut world = World::new().await;
    let admin = world.identity.admin(Digests::OFF);
    for (qid, (length, inside)) in
        (1..).zip([(512, 508), (512, 516), (4608, 4608), (512, 0), (8192, 8192)])
    {
        let mut io = world.identity.io(&admin, qid);
        let command = Command::io(1, 1, 1, 0, 1).sgl(Sgl::InCapsule(length));
        let pdu = Pdu::capsule(command, &vec![1; inside]);
        ends(&mut io, &[pdu], &format!("SGL {length}, {inside} inside"));
    }
    drop(admin);
    world.unharmed("lengths inside").await;
}

#[tokio::test]
async fn before_connect_any_other_command_ends_the_connection() {
    let mut world = World::new().await;
    for (what, command) in [
        ("Keep Alive", Command::new(0x18, 1)),
        ("Property Get", Command::property_get(1, 0)),
        ("Read", Command::io(2, 1, 1, 0, 1).sgl(Sgl::Transport(512))),
        (
            "AUTH_SEND",
            Command::fabrics(5, 1).sgl(Sgl::Transport(1024)),
        ),
        ("Identify", Command::new(6, 1).sgl(Sgl::Transport(4096))),
    ] {
        let mut host = world.stranger(Digests::OFF);
        ends(&mut host, &[Pdu::capsule(command, &[])], what);
    }
    world.unharmed("commands before Connect").await;
}

/// A second command races with the execution of the first Connect: the connection ends, and nothing of it leaks.
#[tokio::test]
async fn a_command_beside_connect_ends_the_connection() {
    let mut world = World::new().await;
    let connect = |cid| {
        let command = Command::connect(cid, 0, 31, Sgl::InCapsule(1024));
        Pdu::capsule(command, &world.identity.connect_data(0xffff))
    };
    for second in [
        connect(2),
        Pdu::capsule(Command::new(0x0c, 2), &[]),
        Pdu::capsule(Command::new(0x18, 2), &[]),
    ] {
        let mut host = world.stranger(Digests::OFF);
        host.send_all(&[connect(1), second]).expect("one send");
        // The Connect may complete first.
        let end = loop {
            match host.receive() {
                Ok(answer) if answer.kind == kind::CAPSULE_RESP => assert_eq!(answer.cid(), 1),
                other => break other,
            }
        };
        match end {
            Ok(answer) => assert_eq!(answer.kind, kind::C2H_TERM_REQ, "{answer:?}"),
            Err(e) => assert_ne!(e.kind(), ErrorKind::TimedOut, "the connection goes on"),
        }
    }
    // Deleting a namespace pauses the subsystem, which would hang if a request of the attacker were left over.
    let namespaces = world.fixture.resource("NvmeNamespace");
    namespaces.deleted(&world.fixture.namespace).await;
    world.unharmed("commands beside Connect").await;
}
