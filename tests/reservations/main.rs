//! Reservations of namespaces with Persist Through Power Loss (PTPL) survive the process.

mod all_registrants;
#[path = "../common/mod.rs"]
mod common;
mod not_durable;
mod registrants;

use std::time::Duration;

use common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl};
use common::{Options, Resource, Target, malloc, name_of, subsystem, tcp_controller, unique};
use serde_json::{Value, json};

/// NVMe opcode of Copy; the source range that is all zeroes is block 0.
const COPY: u8 = 0x19;

/// NVMe opcodes of the reservation commands.
const REGISTER: u8 = 0x0d;
const REPORT: u8 = 0x0e;
const ACQUIRE: u8 = 0x11;
const RELEASE: u8 = 0x15;

/// Status: Reservation Conflict.
const CONFLICT: u16 = 0x83;

/// CPTPL of Register: set PTPL, and clear it.
const PERSIST: u32 = 3 << 30;
const FORGET: u32 = 2 << 30;

/// RTYPE of Acquire: Exclusive Access.
const EXCLUSIVE: u32 = 2 << 8;

/// RACQA of Acquire: Preempt and Abort.
const PREEMPT_AND_ABORT: u32 = 2;

const KEY: u64 = 0x1122_3344_5566_7788;

/// Command timeout: a command waits up to 3 s for its record to be durable, longer on a busy machine.
const ANSWER: Duration = Duration::from_secs(30);

/// Sends a reservation command with two keys; returns the status.
fn command(host: &mut Host, opcode: u8, cdw10: u32, keys: [u64; 2]) -> u16 {
    let data: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
    let length = if opcode == RELEASE { 8 } else { 16 };
    let command = Command::new(opcode, host.cid()).nsid(1).cdw(10, cdw10);
    let command = command.sgl(Sgl::InCapsule(length));
    let capsule = Pdu::capsule(command, &data[..length as usize]);
    host.send(&capsule).expect("the command is sent");
    let answer = host.receive_within(ANSWER).expect("an answer");
    answer.status()
}

/// Returns a namespace of this volume.
fn shown(volume: &str) -> Value {
    json!({ "spec": { "volume_name_ref": volume, "host_nsid": 1 } })
}

/// Reads the Reservation Report: type, number of registrants, PTPL state.
fn report(host: &mut Host) -> (u8, u16, u8) {
    let command = Command::new(REPORT, host.cid()).nsid(1).cdw(10, 31);
    let command = command.cdw(11, 1).sgl(Sgl::Transport(128));
    host.send(&Pdu::capsule(command, &[]))
        .expect("the command is sent");
    let (answer, data) = host.completion(command.cid(), &[]).expect("a report");
    assert_eq!(answer.status(), 0);
    (data[4], u16::from_le_bytes([data[5], data[6]]), data[9])
}

/// Connects an I/O queue, and the admin queue that it depends on.
fn connected(identity: &Identity) -> (Host, Host) {
    let admin = identity.admin(Digests::OFF);
    let io = identity.io(&admin, 1);
    (admin, io)
}

struct Disk {
    holder: Identity,
    other: Identity,
    namespace: String,
    subsystem: String,
    volume: String,
}

impl Disk {
    async fn new(target: &Target) -> Self {
        Self::admitting(target, &[]).await
    }

    /// As [`Disk::new`], with NvmeHosts of these NQNs.
    async fn admitting(target: &Target, hostnqns: &[String]) -> Self {
        let client = target.client().await;
        let volume = malloc(&client, &unique("volume"), 1).await;
        let id = unique("subsystem");
        let subsystem = subsystem(&client, &id, json!({})).await;
        let namespaces = Resource::new(&client, "NvmeNamespace");
        let namespace = namespaces.created(&subsystem, "disk", shown(&volume)).await;
        let hosts = Resource::new(&client, "NvmeHost");
        for (n, hostnqn) in hostnqns.iter().enumerate() {
            let host = json!({ "hostnqn": hostnqn });
            hosts.created(&subsystem, &format!("host-{n}"), host).await;
        }
        let (_, port) = tcp_controller(&client, &subsystem).await;
        let holder = Identity::new(port, &common::nqn_of(&id)).named("holder");
        let other = Identity::new(port, &common::nqn_of(&id)).named("other");
        Self {
            holder,
            other,
            namespace: name_of(&namespace),
            subsystem,
            volume,
        }
    }
}

/// Asserts that the holder can write and the other host cannot.
fn is_held(disk: &Disk) {
    let (_admin, mut other) = connected(&disk.other);
    let refused = other.write(1, 0, &[1; 512]).expect("an answer");
    assert_eq!(refused.status(), CONFLICT);
    let (_admin, mut holder) = connected(&disk.holder);
    let written = holder.write(1, 0, &[2; 512]).expect("an answer");
    assert_eq!(written.status(), 0, "the holder can write");
    assert_eq!(report(&mut holder), (2, 1, 1));
}

/// Creates a disk whose holder has an exclusive reservation that persists; returns the holder's connections too.
async fn reserved(target: &Target) -> (Disk, Host, Host) {
    let disk = Disk::new(target).await;
    let (admin, mut holder) = connected(&disk.holder);
    assert_eq!(command(&mut holder, REGISTER, PERSIST, [0, KEY]), 0);
    assert_eq!(command(&mut holder, ACQUIRE, EXCLUSIVE, [KEY, 0]), 0);
    (disk, admin, holder)
}

fn killed(mut target: Target, options: Options) -> Options {
    target.kill();
    options.after(&target)
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_that_persist_outlive_a_kill() {
    let options = Options::default();
    let target = Target::start_with(options.clone()).await;
    let (disk, admin, holder) = reserved(&target).await;
    // Kill the target right after the response.
    let options = killed(target, options);
    drop((admin, holder));

    let target = Target::start_with(options.clone()).await;
    is_held(&disk);
    let (admin, mut holder) = connected(&disk.holder);
    assert_eq!(command(&mut holder, RELEASE, EXCLUSIVE, [KEY, 0]), 0);
    let options = killed(target, options);
    drop((admin, holder));

    let target = Target::start_with(options.clone()).await;
    let (admin, mut holder) = connected(&disk.holder);
    assert_eq!(
        report(&mut holder),
        (0, 1, 1),
        "registered without a reservation"
    );
    assert_eq!(command(&mut holder, ACQUIRE, EXCLUSIVE, [KEY, 0]), 0);
    assert_eq!(command(&mut holder, REGISTER, FORGET, [KEY, KEY]), 0);
    let options = killed(target, options);
    drop((admin, holder));

    let target = Target::start_with(options).await;
    let (_admin, mut holder) = connected(&disk.holder);
    assert_eq!(
        report(&mut holder),
        (0, 0, 0),
        "the registration does not persist"
    );
    target.stop();
}

/// Copies block 0 to block 8 within the namespace; returns the status.
fn copy(host: &mut Host) -> u16 {
    let command = Command::new(COPY, host.cid()).nsid(1).cdw(10, 8);
    let capsule = Pdu::capsule(command.sgl(Sgl::InCapsule(32)), &[0; 32]);
    host.send(&capsule).expect("the command is sent");
    host.receive_within(ANSWER).expect("an answer").status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_host_does_not_copy() {
    let target = Target::start().await;
    let disk = Disk::new(&target).await;
    let (_admin, mut holder) = connected(&disk.holder);
    let (_other_admin, mut other) = connected(&disk.other);
    assert_eq!(copy(&mut other), 0);
    assert_eq!(command(&mut holder, REGISTER, 0, [0, KEY]), 0);
    assert_eq!(command(&mut holder, ACQUIRE, EXCLUSIVE, [KEY, 0]), 0);
    assert_eq!(copy(&mut other), CONFLICT);
    assert_eq!(copy(&mut holder), 0);
    target.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_are_deleted_with_their_namespace() {
    let options = Options::default();
    let target = Target::start_with(options.clone()).await;
    let disk = Disk::new(&target).await;
    let client = target.client().await;
    let (admin, mut holder) = connected(&disk.holder);
    assert_eq!(command(&mut holder, REGISTER, PERSIST, [0, KEY]), 0);
    drop((admin, holder));
    let namespaces = Resource::new(&client, "NvmeNamespace");
    namespaces.deleted(&disk.namespace).await;
    namespaces
        .created(&disk.subsystem, "disk", shown(&disk.volume))
        .await;
    let (admin, mut other) = connected(&disk.other);
    assert_eq!(
        report(&mut other).1,
        0,
        "a new namespace has no registrants"
    );
    let options = killed(target, options);
    drop((admin, other));
    let target = Target::start_with(options).await;
    let (_admin, mut other) = connected(&disk.other);
    assert_eq!(report(&mut other).1, 0);
    target.stop();
}
