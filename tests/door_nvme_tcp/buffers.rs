//! Ownership of the buffers of large control commands (8 KiB inside the capsule): each is taken and returned exactly
//! once.

use crate::common::nvme_tcp::{CC, Command, Digests, Host, Identity, Pdu, Sgl};
use crate::world::World;

/// A poll group has 32 of these buffers.
const MORE_THAN_ALL: usize = 36;

/// Bytes of such a command that are sent first.
const HALF: usize = 4000;

/// Builds Firmware Image Download of 8 KiB: an admin command that takes data and completes at once.
fn large(cid: u16) -> Pdu {
    let command = Command::new(0x11, cid)
        .cdw(10, 2047)
        .sgl(Sgl::InCapsule(8192));
    Pdu::capsule(command, &[1; 8192])
}

/// Asserts that the command completes, with whatever status.
fn answered(admin: &mut Host, what: &str) {
    let cid = admin.cid();
    admin.send(&large(cid)).expect("a capsule");
    let answer = admin.completion(cid, &[]);
    assert!(answer.is_ok(), "{what}: {answer:?}");
}

/// Connects a host that holds a buffer, by having sent the first half of such a command.
fn holder(identity: &Identity) -> Host {
    let mut admin = identity.admin(Digests::OFF);
    let bytes = large(1).bytes(admin.digests);
    admin.send_bytes(&bytes[..HALF]).expect("a part");
    admin
}

/// Connects hosts that hold all of the buffers.
fn holders(world: &World) -> Vec<Host> {
    let hosts = (0..MORE_THAN_ALL).map(|n| {
        let identity = world.identity.clone().named(&format!("holder-{n}"));
        holder(&identity)
    });
    hosts.collect()
}

#[tokio::test]
async fn large_control_commands_that_never_end_give_their_buffers_back_at_close() {
    let mut world = World::new().await;
    let hosts = holders(&world);
    world.bystander.verify();
    drop(hosts);
    world.unharmed("halves of large commands").await;
    let mut admin = world.identity.admin(Digests::OFF);
    for _ in 0..MORE_THAN_ALL {
        answered(&mut admin, "after the others have gone");
    }
}

/// Regression: one host with that many connections took all of the buffers, and others waited until these were ended. Now
/// half of them are left, and the host's further commands wait for its own.
#[tokio::test]
async fn one_host_has_half_of_the_buffers_of_large_control_commands() {
    let mut world = World::new().await;
    let hosts = (0..MORE_THAN_ALL).map(|_| holder(&world.identity));
    let mut hosts: Vec<_> = hosts.collect();
    let mut other = world.identity.clone().named("other").admin(Digests::OFF);
    answered(&mut other, "beside a host that holds its share");
    // None of its connections had to end for that: each command is completed once its rest has come.
    for (number, admin) in hosts.iter_mut().enumerate() {
        let bytes = large(1).bytes(admin.digests);
        admin.send_bytes(&bytes[HALF..]).expect("the rest");
        let answer = admin.completion(1, &[]);
        assert!(answer.is_ok(), "command {number}: {answer:?}");
    }
    drop((hosts, other));
    world.unharmed("one host's large commands").await;
}

/// The controller is reset while a command of its I/O queue waits for such a buffer.
#[tokio::test]
async fn a_reset_while_a_command_waits_for_its_buffer_takes_none_away() {
    let mut world = World::new().await;
    let hosts = holders(&world);
    for _ in 0..4 {
        let (mut admin, mut io) = world.admitted(Digests::OFF);
        let waits = Command::fabrics(5, 1).sgl(Sgl::InCapsule(8192));
        io.send(&Pdu::capsule(waits, &[2; 8192]))
            .expect("a capsule");
        let cid = admin.cid();
        let reset = admin.call(Command::property_set(cid, CC, 0x0046_0000), &[]);
        assert_eq!(reset.expect("an answer").status(), 0);
    }
    drop(hosts);
    world.unharmed("resets while a command waits").await;
    let mut admin = world.identity.admin(Digests::OFF);
    for _ in 0..MORE_THAN_ALL {
        answered(&mut admin, "after the resets");
    }
}
