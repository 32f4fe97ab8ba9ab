//! Masks: which hosts see a namespace.

use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

use super::views::{FIRST, SECOND, identify, seeing, two};
use super::{ALICE, BOB, Export, SOON};
use crate::common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl};
use crate::common::{Client, Options, Resource, Target, malloc, name_of, namespace, subsystem};

/// Status Invalid Namespace or Format, with Do Not Retry.
const INVALID_NAMESPACE: u16 = 0x400b;

fn masks_of(client: &Client) -> Resource {
    Resource::new(client, "NvmeNamespaceMask")
}

fn mask(namespace: &str, hostnqns: &[&str]) -> Value {
    json!({ "namespace": namespace, "hostnqns": hostnqns })
}

/// A connected host, with an asynchronous event request outstanding.
struct Seer {
    admin: Host,
    io: Host,
    event: u16,
}

impl Seer {
    fn new(export: &Export, hostnqn: &str) -> Self {
        let mut identity = Identity::new(export.port, &export.nqn).named("x");
        identity.hostnqn = hostnqn.to_owned();
        for (to, from) in identity.hostid.iter_mut().zip(hostnqn.bytes().rev()) {
            *to = from;
        }
        let admin = identity.admin(Digests::OFF);
        let io = identity.io(&admin, 1);
        let mut host = Self {
            admin,
            io,
            event: 0,
        };
        host.ask();
        host
    }

    fn ask(&mut self) {
        self.event = self.admin.cid();
        let request = Pdu::capsule(Command::new(0x0c, self.event), &[]);
        self.admin.send(&request).expect("it goes");
    }

    /// Waits for the event of changed namespaces, among which this one is, and requests the next event. SPDK lists
    /// namespaces too that remain visible while their lists of hosts change.
    fn told(&mut self, nsid: u32) {
        let changed = self.changes();
        assert!(changed.contains(&nsid), "{nsid} of {changed:?}");
    }

    /// Waits for the event of changed namespaces; returns the IDs in the log of these, and requests the next event.
    fn changes(&mut self) -> Vec<u32> {
        let (answer, _) = self.admin.completion(self.event, &[]).expect("an event");
        // Event type Notice (2), Namespace Attribute Changed (00h), log page 04h.
        assert_eq!(answer.u32(8), 0x0004_0002);
        let cid = self.admin.cid();
        let command = Command::new(0x02, cid).cdw(10, (1024 - 1) << 16 | 0x04);
        let command = command.sgl(Sgl::Transport(4096));
        let command = Pdu::capsule(command, &[]);
        self.admin.send(&command).expect("it goes");
        let (answer, log) = self.admin.completion(cid, &[]).expect("the log");
        assert_eq!(answer.status(), 0);
        self.ask();
        ids(&log)
    }

    /// Checks which of the namespaces 1 to 3 the host sees, in each way, and that it has not been told of a change:
    /// the answers would not be the next completions.
    fn sees(&mut self, expected: &[u32]) {
        assert_eq!(ids(&identify(&mut self.admin, 2, 0)), expected, "active");
        for nsid in 1..=3 {
            let sees = expected.contains(&nsid);
            for cns in [0, 3] {
                let about = identify(&mut self.admin, cns, nsid);
                let any = about.iter().any(|byte| *byte != 0);
                assert_eq!(any, sees, "identity {cns} of {nsid}");
            }
            assert_eq!(self.io.read(nsid, 0, 1).is_ok(), sees, "{nsid} is read");
            let written = self.io.write(nsid, 0, &[5; 512]).expect("an answer");
            let status = if sees { 0 } else { INVALID_NAMESPACE };
            assert_eq!(written.status(), status, "{nsid} is written");
        }
    }
}

fn ids(list: &[u8]) -> Vec<u32> {
    let ids = list.chunks_exact(4);
    let ids = ids.map(|id| u32::from_le_bytes(id.try_into().expect("4 bytes")));
    ids.take_while(|id| *id != 0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mask_holds_for_any_host_and_changes_while_they_are_connected() {
    let target = Target::start().await;
    let export = two(&target).await.listens().await;
    let masks = masks_of(&export.client);
    let [mut alice, mut bob] = [ALICE, BOB].map(|host| Seer::new(&export, host));
    alice.sees(&[1, 2]);
    bob.sees(&[1, 2]);

    let object = mask(FIRST, &[ALICE]);
    let made = masks
        .created(&export.subsystem, "mask", object.clone())
        .await;
    assert_eq!(made["hostnqns"], object["hostnqns"]);
    let name = name_of(&made);
    bob.told(1);
    bob.sees(&[2]);
    alice.sees(&[1, 2]);
    Seer::new(&export, "nqn.2022-09.io.spdk:stranger").sees(&[2]);
    // A namespace without a mask is visible to all.
    let third = malloc(&export.client, "third", 16).await;
    let third = namespace(&export.client, &export.subsystem, &third, json!({})).await;
    alice.told(3);
    bob.told(3);
    bob.sees(&[2, 3]);
    Resource::new(&export.client, "NvmeNamespace")
        .deleted(&third)
        .await;
    alice.told(3);
    bob.told(3);

    let set = Some(["hostnqns"].as_slice());
    let change = async |hosts: &[&str]| {
        let object = json!({ "hostnqns": hosts });
        masks.updated(&name, object, set).await;
    };
    change(&[ALICE, "nqn.2022-09.io.spdk:third"]).await;
    bob.sees(&[2]);
    alice.sees(&[1, 2]);
    change(&[ALICE, BOB]).await;
    bob.told(1);
    bob.sees(&[1, 2]);
    alice.sees(&[1, 2]);
    change(&[BOB]).await;
    alice.told(1);
    alice.sees(&[2]);
    bob.sees(&[1, 2]);
    change(&[]).await;
    bob.told(1);
    bob.sees(&[2]);
    alice.sees(&[2]);
    masks.deleted(&name).await;
    alice.told(1);
    bob.told(1);
    alice.sees(&[1, 2]);
    bob.sees(&[1, 2]);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_sees_what_its_own_list_and_the_mask_both_allow() {
    let target = Target::start().await;
    let export = two(&target).await;
    let masks = masks_of(&export.client);
    masks
        .created(&export.subsystem, "mask", mask(FIRST, &[ALICE]))
        .await;
    // The host of the subsystem's own `hostnqn` has no list.
    let spec = json!({ "spec": { "hostnqn": BOB } });
    Resource::new(&export.client, "NvmeSubsystem")
        .updated(&export.subsystem, spec, Some(&["spec.hostnqn"]))
        .await;
    let alices = export.admit("alice", seeing(ALICE, &[SECOND])).await;
    let export = export.listens().await;
    let [mut alice, mut bob] = [ALICE, BOB].map(|host| Seer::new(&export, host));
    alice.sees(&[2]);
    bob.sees(&[2]);

    let hosts = Resource::new(&export.client, "NvmeHost");
    let lists: [(&[&str], &[u32]); 3] = [(&[FIRST], &[1]), (&[], &[1, 2]), (&[FIRST], &[1])];
    for (list, sees) in lists {
        let object = json!({ "namespaces": list });
        let set = Some(["namespaces"].as_slice());
        hosts.updated(&alices, object, set).await;
        alice.told(2);
        alice.sees(sees);
        bob.sees(&[2]);
    }
    // A host that is admitted later has no list, and is not named.
    let carol = "nqn.2022-09.io.spdk:carol";
    export.admit("carol", seeing(carol, &[])).await;
    Seer::new(&export, carol).sees(&[2]);
    masks
        .updated(
            "nvmeSubsystems/s/nvmeNamespaceMasks/mask",
            json!({ "hostnqns": [BOB] }),
            Some(&["hostnqns"]),
        )
        .await;
    alice.told(1);
    bob.told(1);
    alice.sees(&[]);
    bob.sees(&[1, 2]);
    // The mask stays without any list of a host.
    hosts.deleted(&alices).await;
    Seer::new(&export, carol).sees(&[2]);
    bob.sees(&[1, 2]);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_of_a_mask_that_was_there_first_is_never_shown_to_others() {
    let mut target = Target::start().await;
    let export = two(&target).await.listens().await;
    let later = "nvmeSubsystems/s/nvmeNamespaces/later";
    let masks = masks_of(&export.client);
    let object = mask(later, &[ALICE]);
    let made = masks.created(&export.subsystem, "later", object).await;
    let name = name_of(&made);
    let stats = masks.stats(&name).await;
    assert_eq!(stats["read_ops_count"].as_i64().unwrap_or(0), 0);
    let [mut alice, mut bob] = [ALICE, BOB].map(|host| Seer::new(&export, host));
    let volume = malloc(&export.client, "later", 16).await;
    let namespaces = Resource::new(&export.client, "NvmeNamespace");
    let object = json!({ "spec": { "volume_name_ref": volume, "host_nsid": 3 } });
    // Also after it was deleted while its mask stays.
    for _ in 0..2 {
        namespaces
            .created(&export.subsystem, "later", object.clone())
            .await;
        alice.told(3);
        alice.sees(&[1, 2, 3]);
        // SPDK sends the event of an added or removed namespace to all hosts; for others its log is empty.
        assert_eq!(bob.changes(), [0_u32; 0]);
        bob.sees(&[1, 2]);
        namespaces.deleted(later).await;
        alice.told(3);
        assert_eq!(bob.changes(), [0_u32; 0]);
        bob.sees(&[1, 2]);
    }
    namespaces.created(&export.subsystem, "later", object).await;
    let subsystems = Resource::new(&export.client, "NvmeSubsystem");
    let status = subsystems
        .delete(&export.subsystem)
        .await
        .expect_err("in use");
    assert_eq!(status.code(), Code::FailedPrecondition);
    drop((alice, bob));
    // A namespace that is changed is removed and added again.
    let other = malloc(&export.client, "other", 16).await;
    let object = json!({ "spec": { "volume_name_ref": other } });
    namespaces
        .updated(later, object, Some(&["spec.volume_name_ref"]))
        .await;
    Seer::new(&export, ALICE).sees(&[1, 2, 3]);
    Seer::new(&export, BOB).sees(&[1, 2]);

    target.signal(Signal::KILL);
    let _ = target.wait(SOON);
    let target = Target::start_with(Options::default().after(&target)).await;
    let client = target.client().await;
    assert_eq!(masks_of(&client).get(&name).await.expect("kept"), made);
    Seer::new(&export, ALICE).sees(&[1, 2, 3]);
    Seer::new(&export, BOB).sees(&[1, 2]);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_in_flight_ends_when_its_host_loses_the_namespace() {
    let target = Target::start().await;
    let client = target.client().await;
    let over = subsystem(&client, "s", json!({})).await;
    let base = malloc(&client, "base", 4).await;
    let slow = json!({ "volume_name_ref": base, "avg_read_latency_us": 4_000_000 });
    let slow = name_of(
        &Resource::new(&client, "DelayVolume")
            .created("", "slow", slow)
            .await,
    );
    let of = namespace(&client, &over, &slow, json!({})).await;
    let export = Export {
        nqn: crate::common::nqn_of("s"),
        port: 0,
        client,
        subsystem: over,
    };
    let export = export.listens().await;
    let mut alice = Seer::new(&export, ALICE);
    let read = Command::io(2, alice.io.cid(), 1, 0, 1).sgl(Sgl::Transport(512));
    let (cid, read) = (read.cid(), Pdu::capsule(read, &[]));
    alice.io.send(&read).expect("it goes");
    // A queue's commands are executed in order: the read is in flight once a later write has ended.
    let written = alice.io.write(1, 8, &[5; 512]).expect("an answer");
    assert_eq!(written.status(), 0);
    let masks = masks_of(&export.client);
    masks
        .created(&export.subsystem, "mask", mask(&of, &[]))
        .await;
    alice.told(1);
    let written = alice.io.write(1, 8, &[5; 512]).expect("an answer");
    assert_eq!(written.status(), INVALID_NAMESPACE);
    let (answer, data) = alice.io.completion(cid, &[]).expect("its end");
    assert_eq!((answer.status(), data.len()), (0, 512));
    target.stop();
}

#[tokio::test]
async fn a_mask_names_hosts_and_one_namespace_of_its_own_subsystem() {
    let target = Target::start().await;
    let export = two(&target).await;
    let masks = masks_of(&export.client);
    subsystem(&export.client, "other", json!({})).await;
    let elsewhere = "nvmeSubsystems/other/nvmeNamespaces/a";
    for (name, code) in [
        ("", Code::InvalidArgument),
        ("volumes/first", Code::InvalidArgument),
        ("nvmeSubsystems/s/nvmeHosts/first", Code::InvalidArgument),
        ("nvmeSubsystems/s/nvmeNamespaces/", Code::InvalidArgument),
        ("nvmeSubsystems/s/nvmeNamespaces/A", Code::InvalidArgument),
        (elsewhere, Code::InvalidArgument),
    ] {
        let object = mask(name, &[ALICE]);
        let status = masks.refused(&export.subsystem, "a", object, code).await;
        assert!(status.message().contains(name), "{name}: {status}");
    }
    for hostnqn in ["", "alice", "nqn.2014-08.org.nvmexpress.discovery"] {
        let object = mask(FIRST, &[ALICE, hostnqn]);
        let status = masks
            .refused(&export.subsystem, "a", object, Code::InvalidArgument)
            .await;
        assert!(status.message().contains("hostnqns"), "{status}");
    }
    let object = mask("nvmeSubsystems/none/nvmeNamespaces/a", &[]);
    masks
        .refused("nvmeSubsystems/none", "a", object, Code::NotFound)
        .await;
    // The refused masks hold nothing.
    masks
        .created("nvmeSubsystems/other", "a", mask(elsewhere, &[]))
        .await;

    let nqns: Vec<String> = (0..1001)
        .map(|n| format!("nqn.2022-09.io.spdk:host-{n}"))
        .collect();
    let mut many: Vec<&str> = nqns.iter().map(String::as_str).collect();
    let status = masks
        .refused(
            &export.subsystem,
            "a",
            mask(FIRST, &many),
            Code::InvalidArgument,
        )
        .await;
    assert!(
        status.message().contains("1001 hosts: at most 1000"),
        "{status}"
    );
    many.pop();
    let made = masks
        .created(&export.subsystem, "a", mask(FIRST, &many))
        .await;
    assert_eq!(
        made["hostnqns"].as_array().map(Vec::len),
        Some(1000),
        "all of them"
    );
    let status = masks
        .refused(
            &export.subsystem,
            "b",
            mask(FIRST, &[ALICE]),
            Code::AlreadyExists,
        )
        .await;
    assert!(status.message().contains(&name_of(&made)), "{status}");
    let export = export.listens().await;
    Seer::new(&export, &nqns[999]).sees(&[1, 2]);
    Seer::new(&export, &nqns[1000]).sees(&[2]);
    target.stop();
}
