//! Commands that are valid by themselves but come in the wrong state, twice, or without the commands they depend on.

use std::time::Duration;

use serde_json::json;

use super::{completion_of, refused};
use crate::common::nvme_tcp::{ANSWER, Bystander, CC, Command, Digests, Identity, Pdu, Sgl};
use crate::common::{
    Fixture, Options, Resource, Target, eventually, malloc, name_of, namespace, remote_controller,
    tcp_path, unique,
};

/// Bound of log lines that one connection may cause.
const LINES: usize = 20;

/// Checks that the subsystem can be paused, by adding and removing a namespace.
async fn can_be_paused(fixture: &Fixture) {
    let volume = malloc(&fixture.client, &unique("more"), 1).await;
    let namespace = namespace(&fixture.client, &fixture.subsystem, &volume, json!({})).await;
    fixture.resource("NvmeNamespace").deleted(&namespace).await;
    fixture.resource("MallocVolume").deleted(&volume).await;
}

#[tokio::test]
async fn a_second_connect_is_refused() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let (one, two) = (
        Fixture::tcp(&target, 1).await,
        Fixture::tcp(&target, 1).await,
    );
    let identity = Identity::new(one.port, &one.nqn);
    let admin = identity.admin(Digests::OFF);
    let elsewhere = Identity {
        subnqn: two.nqn.clone(),
        ..identity.clone()
    };
    for second in [&identity, &elsewhere] {
        for qid in [1, 2] {
            let mut host = identity.negotiated(Digests::OFF);
            let connect = |cid, qid, identity: &Identity| {
                let command = Command::connect(cid, qid, 31, Sgl::InCapsule(1024));
                Pdu::capsule(command, &identity.connect_data(admin.cntlid))
            };
            let both = [connect(1, 1, &identity), connect(2, qid, second)];
            host.send_all(&both).expect("it goes");
            // Race: in either order one of the two is refused, or the connection ends.
            let answers = [host.receive(), host.receive()];
            let good = answers
                .iter()
                .flatten()
                .filter(|answer| answer.status() == 0);
            assert!(good.count() <= 1, "both succeed");
        }
    }
    // Admin queues, and a queue ID in use, which the target retries after a delay.
    let mut host = identity.negotiated(Digests::OFF);
    let connect = |cid| {
        let command = Command::connect(cid, 0, 31, Sgl::InCapsule(1024));
        Pdu::capsule(command, &identity.connect_data(0xffff))
    };
    host.send_all(&[connect(1), connect(2), connect(3)])
        .expect("it goes");
    drop(host);
    let first = identity.io(&admin, 3);
    let mut again = identity.negotiated(Digests::OFF);
    let command = Command::connect(1, 3, 31, Sgl::InCapsule(1024));
    let connect = Pdu::capsule(command, &identity.connect_data(admin.cntlid));
    again.send(&connect).expect("it goes");
    drop((first, admin));
    let _ = again.receive();
    drop(again);
    for fixture in [&one, &two] {
        can_be_paused(fixture).await;
    }
    bystander.unharmed(&mut target, "two Connects").await;
}

#[tokio::test]
async fn a_command_beside_connect_does_not_keep_the_subsystem_from_pausing() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let own = Fixture::tcp(&target, 1).await;
    let identity = Identity::new(own.port, &own.nqn);
    for opcode in [0x0c, 0x18, 0x02, 0x7f] {
        let mut host = identity.negotiated(Digests::OFF);
        let command = Command::connect(1, 0, 31, Sgl::InCapsule(1024));
        let connect = Pdu::capsule(command, &identity.connect_data(0xffff));
        let beside = Pdu::capsule(Command::new(opcode, 2), &[]);
        host.send_all(&[connect, beside]).expect("it goes");
        let _ = (host.receive(), host.receive());
    }
    can_be_paused(&own).await;
    bystander
        .unharmed(&mut target, "a command beside Connect")
        .await;
}

#[tokio::test]
async fn a_fused_first_whose_second_is_refused_is_given_back() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let own = Fixture::tcp(&target, 1).await;
    let identity = Identity::new(own.port, &own.nqn);
    let admin = identity.admin(Digests::OFF);
    let block = [0; 512];
    let capsule = |opcode, cid, nsid, fuse| {
        let command = Command::io(opcode, cid, nsid, 0, 1).fuse(fuse);
        Pdu::capsule(command.sgl(Sgl::InCapsule(512)), &block)
    };
    // Namespace unknown, a second half that is not a write, another first half, a write that is not fused.
    for (qid, second) in [
        capsule(1, 2, 99, 2),
        capsule(5, 2, 1, 2),
        capsule(5, 2, 1, 1),
        capsule(1, 2, 1, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let qid = u16::try_from(qid).expect("a queue ID") + 1;
        let mut io = identity.io(&admin, qid);
        io.send_all(&[capsule(5, 1, 1, 1), second])
            .expect("it goes");
        let first = completion_of(&mut io, 1);
        assert_ne!(first.status(), 0, "queue {qid}");
    }
    // No second half at all.
    let mut io = identity.io(&admin, 9);
    io.send(&capsule(5, 1, 1, 1)).expect("it goes");
    drop((io, admin));
    own.resource("NvmeNamespace").deleted(&own.namespace).await;
    bystander
        .unharmed(&mut target, "fused commands in part")
        .await;
}

#[tokio::test]
async fn a_refused_preempt_and_abort_is_answered() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let own = Fixture::tcp(&target, 1).await;
    let identity = Identity::new(own.port, &own.nqn);
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    let keys = [0_u8; 16];
    let mut acquire = |cdw10: u32, length: u32| {
        let cid = io.cid();
        let command = Command::new(0x11, cid).nsid(1).cdw(10, cdw10);
        let sgl = if length == 0 {
            Sgl::None
        } else {
            Sgl::InCapsule(length)
        };
        let data = &keys[..length as usize];
        io.call(command.sgl(sgl), data).expect("an answer").status()
    };
    // Preempt and Abort: without keys, with an unregistered key, with a reserved field set.
    for (cdw10, length) in [(2, 0), (2, 8), (2, 16), (2 | 1 << 3, 16), (2 | 7 << 8, 16)] {
        assert_ne!(acquire(cdw10, length), 0, "{cdw10:#x}, {length} bytes");
    }
    drop((io, admin));
    own.resource("NvmeNamespace").deleted(&own.namespace).await;
    bystander
        .unharmed(&mut target, "a refused preempt and abort")
        .await;
}

#[tokio::test]
async fn a_controller_that_is_reset_and_left_goes_quietly() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let identity = Identity::new(bystander.fixture.port, &bystander.fixture.nqn);
    let mut admin = identity.admin(Digests::OFF);
    let io: Vec<_> = (1..4).map(|qid| identity.io(&admin, qid)).collect();
    let before = target.log().lines().count();
    let disable = Command::property_set(admin.cid(), CC, 0);
    admin.send(&Pdu::capsule(disable, &[])).expect("it goes");
    drop((admin, io));
    bystander
        .unharmed(&mut target, "a reset, and nobody there")
        .await;
    // The reset's timer has expired by then.
    let mut newcomer = identity.admin(Digests::OFF);
    newcomer
        .receive_within(Duration::from_millis(300))
        .expect_err("nothing was asked");
    let log = target.log();
    let lines = log.lines().skip(before);
    let (count, last) = (lines.clone().count(), lines.last());
    assert!(count < LINES, "{count} lines, the last {last:?}");
}

#[tokio::test]
async fn io_cancel_is_refused() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let own = Fixture::tcp(&target, 1).await;
    let volume = malloc(&own.client, "second", 1).await;
    namespace(&own.client, &own.subsystem, &volume, json!({})).await;
    let identity = Identity::new(own.port, &own.nqn);
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    // CDW10 names queue 1 and a command; the action selects one command or all.
    for (nsid, action) in [(1, 0), (1, 1), (2, 1), (u32::MAX, 0), (u32::MAX, 1)] {
        for cid in [0, 1, 0xffff] {
            let reads: Vec<_> = (100..104)
                .map(|cid| Command::io(2, cid, 2, 0, 8).sgl(Sgl::Transport(4096)))
                .map(|read| Pdu::capsule(read, &[]))
                .collect();
            let cancel = Command::new(0x18, 1).nsid(nsid).cdw(10, cid << 16 | 1);
            let cancel = Pdu::capsule(cancel.cdw(11, action), &[]);
            io.send_all(&[&reads[..], &[cancel]].concat())
                .expect("it goes");
            let mut done = Vec::new();
            while done.len() < 5 {
                let answer = io.receive().expect("a completion");
                match answer.kind {
                    crate::common::nvme_tcp::kind::CAPSULE_RESP => {
                        if answer.cid() == 1 {
                            assert_ne!(answer.status(), 0, "{nsid:#x} {action} {cid}");
                        }
                        done.push(answer.cid());
                    }
                    _ if answer.flags & 8 != 0 => done.push(answer.u16(8)),
                    _ => {}
                }
            }
            done.sort_unstable();
            assert_eq!(done, [1, 100, 101, 102, 103], "each once");
        }
    }
    drop((io, admin));
    own.resource("NvmeNamespace").deleted(&own.namespace).await;
    bystander.unharmed(&mut target, "I/O Cancel").await;
}

#[tokio::test]
async fn authentication_without_a_key_is_refused() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let identity = Identity::new(bystander.fixture.port, &bystander.fixture.nqn);
    let mut admin = identity.admin(Digests::OFF);
    // Negotiate: one protocol (DH-HMAC-CHAP) with SHA-256 and the 8,192-bit group.
    let mut message = vec![0; 72];
    (message[4], message[7], message[8]) = (1, 1, 1);
    (message[10], message[11], message[12], message[42]) = (1, 1, 1, 5);
    let length = u32::try_from(message.len()).expect("a length");
    let fields = |fctype, cid, length: u32| {
        let command = Command::fabrics(fctype, cid).put(41, &[1, 1, 0xe9]);
        command.put(44, &length.to_le_bytes())
    };
    for _ in 0..3 {
        let cid = admin.cid();
        let send = fields(5, cid, length).sgl(Sgl::InCapsule(length));
        let sent = admin.call(send, &message).expect("an answer");
        assert_ne!(sent.status(), 0, "a key exchange");
        let cid = admin.cid();
        let receive = fields(6, cid, 2048).sgl(Sgl::Transport(2048));
        admin.send(&Pdu::capsule(receive, &[])).expect("it goes");
        assert_ne!(completion_of(&mut admin, cid).status(), 0, "a challenge");
    }
    drop(admin);
    bystander
        .unharmed(&mut target, "authentication without a key")
        .await;
}

#[tokio::test]
async fn a_vendor_command_is_refused() {
    let peer = Target::start_with(Options::default()).await;
    let export = Fixture::tcp(&peer, 4).await;
    let second = malloc(&export.client, "behind", 4).await;
    namespace(&export.client, &export.subsystem, &second, json!({})).await;
    let target = Target::start_with(Options::default().beside(&peer)).await;
    let own = Fixture::tcp(&target, 4).await;
    let controller = remote_controller(&own.client, "far", "DISABLE").await;
    let paths = Resource::new(&own.client, "NvmePath");
    let path = tcp_path(export.port, &export.nqn);
    paths.created(&controller, "path", path).await;

    // Namespace 1 of subsystem `front` is the peer's namespace 2; namespace 2 of `front` is another volume.
    let subsystem = crate::common::subsystem(&own.client, "front", json!({})).await;
    let remote = eventually("the remote namespace", ANSWER, async || {
        let spec = json!({ "spec": { "volume_name_ref": "volumes/farn2" } });
        let namespaces = Resource::new(&own.client, "NvmeNamespace");
        namespaces.create(&subsystem, "", spec).await.ok()
    })
    .await;
    let neighbour = malloc(&own.client, "neighbour", 4).await;
    let neighbour = namespace(&own.client, &subsystem, &neighbour, json!({})).await;
    let (_, port) = crate::common::tcp_controller(&own.client, &subsystem).await;
    let identity = Identity::new(port, &crate::common::nqn_of("front"));
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    for opcode in [0xc0, 0xc1, 0xc2, 0xfc, 0x79, 0x0c] {
        let cid = io.cid();
        let command = Command::new(opcode, cid).nsid(1);
        io.send(&Pdu::capsule(command, &[])).expect("it goes");
        assert!(refused(&mut io), "{opcode:#x}");
    }
    drop((io, admin));
    let namespaces = own.resource("NvmeNamespace");
    namespaces.deleted(&name_of(&remote)).await;
    namespaces.deleted(&neighbour).await;
    target.stop();
    peer.stop();
}
