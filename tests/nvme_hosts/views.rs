//! Views: which namespaces of a subsystem each host sees.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tonic::Code;

use super::{ALICE, BOB, Export, SOON, STAY, hosts_of, place, reads};
use crate::common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl};
use crate::common::{
    JsonRpc, Options, Resource, Target, eventually, malloc, name_of, namespace, subsystem,
};

/// Name of namespace 1 of [`two`].
pub const FIRST: &str = "nvmeSubsystems/s/nvmeNamespaces/first";
/// Name of namespace 2 of [`two`].
pub const SECOND: &str = "nvmeSubsystems/s/nvmeNamespaces/second";

/// Returns an NvmeHost with a list of namespaces.
pub fn seeing(hostnqn: &str, namespaces: &[&str]) -> Value {
    json!({ "hostnqn": hostnqn, "namespaces": namespaces })
}

/// Creates a subsystem with namespaces 1 and 2, without hosts and controllers.
pub async fn two(target: &Target) -> Export {
    let client = target.client().await;
    let subsystem = subsystem(&client, "s", json!({})).await;
    for (id, nsid) in [("first", 1), ("second", 2)] {
        let volume = malloc(&client, id, 16).await;
        let object = json!({ "spec": { "volume_name_ref": volume, "host_nsid": nsid } });
        Resource::new(&client, "NvmeNamespace")
            .created(&subsystem, id, object)
            .await;
    }
    Export {
        nqn: crate::common::nqn_of("s"),
        port: 0,
        client,
        subsystem,
    }
}

impl Export {
    /// Creates its TCP listener.
    pub async fn listens(mut self) -> Self {
        let (_, port) = crate::common::tcp_controller(&self.client, &self.subsystem).await;
        self.port = port;
        self
    }
}

/// Returns the Identify data of a namespace, or of a list of namespace IDs.
pub fn identify(admin: &mut Host, cns: u8, nsid: u32) -> Vec<u8> {
    let cid = admin.cid();
    let command = Command::new(6, cid).nsid(nsid).put(40, &[cns]);
    let command = command.sgl(Sgl::Transport(4096));
    admin.send(&Pdu::capsule(command, &[])).expect("it goes");
    admin.completion(cid, &[]).expect("an answer").1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_list_sees_the_namespaces_of_it_and_no_trace_of_others() {
    let target = Target::start().await;
    let export = two(&target).await;
    export.admit("alice", seeing(ALICE, &[FIRST])).await;
    export.admit("bob", seeing(BOB, &[])).await;
    let export = export.listens().await;
    let volume = malloc(&export.client, "third", 16).await;
    namespace(
        &export.client,
        &export.subsystem,
        &volume,
        json!({ "host_nsid": 3 }),
    )
    .await;

    let alice = export.raw_host(ALICE);
    let bob = Identity {
        hostid: [7; 16],
        ..export.raw_host(BOB)
    };
    for (identity, sees) in [(alice, [true, false, false]), (bob, [true; 3])] {
        let mut admin = identity.admin(Digests::OFF);
        let mut io = identity.io(&admin, 1);
        let active = identify(&mut admin, 2, 0);
        let listed: BTreeSet<u8> = active.chunks(4).map(|id| id[0]).collect();
        for (nsid, sees) in (1_u8..).zip(sees) {
            let id = u32::from(nsid);
            assert_eq!(
                listed.contains(&nsid),
                sees,
                "{nsid} of {}",
                identity.hostnqn
            );
            assert_eq!(io.read(id, 0, 1).is_ok(), sees, "{nsid} is read");
            assert_eq!(
                io.write(id, 0, &[5; 512]).expect("an answer").status() == 0,
                sees
            );
            let about = identify(&mut admin, 0, id);
            assert_eq!(about.iter().any(|byte| *byte != 0), sees, "its data");
            let names = identify(&mut admin, 3, id);
            assert_eq!(names.iter().any(|byte| *byte != 0), sees, "its names");
        }
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_sees_changes_while_it_is_connected_and_others_do_not_notice() {
    let mut target = Target::start().await;
    let export = two(&target).await;
    let alices = export.admit("alice", seeing(ALICE, &[])).await;
    export.admit("bob", seeing(BOB, &[])).await;
    let export = export.listens().await;
    let hosts = hosts_of(&export.client);

    let at_bob = place(&target, "bob");
    let load = export.host(BOB).driver().load(&at_bob, STAY).await;
    let at_alice = place(&target, "alice");
    let socket = at_alice.join("rpc.sock");
    let tool = export.host(ALICE).driver().app("bdevperf", &at_alice);
    let tool = tool.args(["-z", "-q", "1", "-o", "4096", "-w", "read", "-t", "1", "-r"]);
    let running = tool.arg(&socket).spawn();
    let mut rpc = eventually("alice's driver answers", SOON, async || {
        JsonRpc::connect(&socket).await.ok()
    })
    .await;
    let mut sees = async |disks: &[&str]| {
        eventually(&format!("she sees {disks:?}"), SOON, async || {
            let all = rpc.call("bdev_get_bdevs", Value::Null).await.ok()?;
            let all = all.as_array().expect("a list").iter();
            let mut names: Vec<&str> = all.filter_map(|disk| disk["name"].as_str()).collect();
            names.sort_unstable();
            (names == disks).then_some(())
        })
        .await;
    };
    sees(&["Remoten1", "Remoten2"]).await;
    for (namespaces, disks) in [
        (&[SECOND] as &[&str], &["Remoten2"] as &[&str]),
        (&[FIRST, SECOND], &["Remoten1", "Remoten2"]),
        (&[FIRST], &["Remoten1"]),
        (&[], &["Remoten1", "Remoten2"]),
        (&[FIRST], &["Remoten1"]),
    ] {
        let object = json!({ "namespaces": namespaces });
        let mask = Some(["namespaces"].as_slice());
        hosts.updated(&alices, object, mask).await;
        sees(disks).await;
    }
    running.stop().await.expect("it ends");
    load.stop().await.expect("all of his is verified");

    // A namespace named in a view is in use and keeps its ID.
    let namespaces = Resource::new(&export.client, "NvmeNamespace");
    let status = namespaces.delete(FIRST).await.expect_err("in use");
    assert!(status.message().contains(&alices), "{status}");
    let other = json!({ "spec": { "host_nsid": 9 } });
    let status = namespaces
        .update_refused(FIRST, other, None, Code::FailedPrecondition)
        .await;
    assert!(status.message().contains(&alices), "{status}");
    let shown = hosts.get(&alices).await.expect("it is there");

    target.signal(rustix::process::Signal::KILL);
    let _ = target.wait(SOON);
    let target = Target::start_with(Options::default().after(&target)).await;
    let client = target.client().await;
    let hosts = hosts_of(&client);
    assert_eq!(hosts.get(&alices).await.expect("kept"), shown);
    let alice = export.host(ALICE);
    reads(&target, &alice).await.expect("the first");
    let copy = at_alice.join("copy");
    let second = alice.copy_out(&at_alice, 2, 64, &copy).await;
    second.expect_err("not the second");
    // The remaining host's view is unchanged.
    hosts.deleted(&alices).await;
    let bob = export.host(BOB).copy_out(&at_bob, 2, 64, &copy).await;
    bob.expect("he sees both");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_go_on_seeing_all_notice_nothing_of_another_ones_first_list() {
    let target = Target::start().await;
    let export = two(&target).await;
    let alices = export.admit("alice", seeing(ALICE, &[])).await;
    let export = export.listens().await;
    let alice = export.raw_host(ALICE);
    let mut admin = alice.admin(Digests::OFF);
    let event = admin.cid();
    let request = Command::new(0x0c, event);
    admin.send(&Pdu::capsule(request, &[])).expect("it goes");

    // The namespaces get lists of hosts, and no longer have them, with another host.
    let bobs = export.admit("bob", seeing(BOB, &[FIRST])).await;
    assert!(identify(&mut admin, 0, 2).iter().any(|byte| *byte != 0));
    hosts_of(&export.client).deleted(&bobs).await;
    // No event has been sent: Identify's would not be the next completion.
    assert!(identify(&mut admin, 0, 2).iter().any(|byte| *byte != 0));

    let object = json!({ "namespaces": [FIRST] });
    let mask = Some(["namespaces"].as_slice());
    hosts_of(&export.client)
        .updated(&alices, object, mask)
        .await;
    let (answer, _) = admin.completion(event, &[]).expect("an event");
    // Event type Notice (2), Namespace Attribute Changed (00h), log page 04h.
    assert_eq!(answer.u32(8), 0x0004_0002);
    target.stop();
}

/// Features of namespaces: Reservation Notification Mask and Reservation Persistence (Base specification 2.1, 5.1.25.2).
const NOTIFICATION_MASK: u32 = 0x82;
const PERSISTENCE: u32 = 0x83;

/// Returns a feature's value at namespace `nsid`.
fn feature(admin: &mut Host, feature: u32, nsid: u32) -> u32 {
    let command = Command::new(0x0a, admin.cid()).nsid(nsid).cdw(10, feature);
    let answer = admin.call(command, &[]).expect("an answer");
    assert_eq!(answer.status(), 0, "feature {feature:#x} of {nsid}");
    answer.u32(8)
}

/// Sets a feature for all namespaces. SPDK answers that it cannot be saved, also where it was set.
fn set_for_all(admin: &mut Host, feature: u32, value: u32) {
    let command = Command::new(0x09, admin.cid()).nsid(u32::MAX);
    let command = command.cdw(10, feature).cdw(11, value);
    admin.call(command, &[]).expect("an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn features_of_all_namespaces_are_those_of_visible_ones() {
    let target = Target::start().await;
    let export = two(&target).await;
    export.admit("alice", seeing(ALICE, &[FIRST])).await;
    export.admit("bob", seeing(BOB, &[])).await;
    let export = export.listens().await;
    let alice = export.raw_host(ALICE);
    let bob = Identity {
        hostid: [7; 16],
        ..export.raw_host(BOB)
    };
    let mut hers = alice.admin(Digests::OFF);
    let mut his = bob.admin(Digests::OFF);
    for (what, value) in [(NOTIFICATION_MASK, 0b1110), (PERSISTENCE, 1)] {
        let before = feature(&mut his, what, 2);
        assert_ne!(before, value, "{what:#x}");
        set_for_all(&mut hers, what, value);
        assert_eq!(feature(&mut his, what, 1), value, "{what:#x} of 1");
        assert_eq!(feature(&mut his, what, 2), before, "{what:#x} of 2");
        set_for_all(&mut his, what, value);
        assert_eq!(feature(&mut his, what, 2), value, "{what:#x} of 2");
    }
    target.stop();
}

#[tokio::test]
async fn a_list_names_namespaces_of_the_hosts_own_subsystem() {
    let target = Target::start().await;
    let export = two(&target).await;
    let other = subsystem(&export.client, "other", json!({})).await;
    let volume = malloc(&export.client, "elsewhere", 4).await;
    let elsewhere = namespace(&export.client, &other, &volume, json!({})).await;
    let hosts = hosts_of(&export.client);
    for (name, code) in [
        ("volumes/first", Code::InvalidArgument),
        ("nvmeSubsystems/s/nvmeHosts/first", Code::InvalidArgument),
        ("", Code::InvalidArgument),
        ("nvmeSubsystems/s/nvmeNamespaces/none", Code::NotFound),
        (&elsewhere, Code::InvalidArgument),
    ] {
        let status = hosts
            .refused(&export.subsystem, "a", seeing(ALICE, &[name]), code)
            .await;
        assert!(status.message().contains(name), "{name}: {status}");
    }
    let twice = seeing(ALICE, &[FIRST, FIRST]);
    let made = hosts.created(&export.subsystem, "a", twice).await;
    hosts.deleted(&name_of(&made)).await;
    target.stop();
}
