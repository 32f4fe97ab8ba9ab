//! The host that a subsystem itself names, `spec.hostnqn`, and the NvmeHost of the same NQN.

use std::path::Path;

use opi_spdk::state::{Change, Disk, StateKey, Store};
use rustix::process::Signal;
use serde_json::json;

use super::views::{FIRST, two};
use super::{ALICE, BOB, Export, SOON, host, hosts_of, key_file, reads};
use crate::common::nvme_tcp::{Command, Digests, Pdu, Sgl};
use crate::common::{
    Options, Resource, Target, Tool, base64, dhchap_key, eventually, malloc, name_of, namespace,
};

/// Has the subsystem name this host.
async fn names(export: &Export, hostnqn: &str) {
    let subsystems = Resource::new(&export.client, "NvmeSubsystem");
    let spec = json!({ "spec": { "hostnqn": hostnqn } });
    subsystems
        .updated(&export.subsystem, spec, Some(&["spec.hostnqn"]))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_that_a_subsystem_names_has_the_keys_and_the_list_of_its_nvme_host() {
    let mut target = Target::start().await;
    let export = two(&target).await.listens().await;
    names(&export, ALICE).await;
    let key = dhchap_key(1);
    let with_key = export
        .host(ALICE)
        .with_dhchap(&key_file(&target, "key", &key));
    let without = export.host(ALICE);
    let bob = export.host(BOB);

    // It goes over to the NvmeHost while it is connected.
    let identity = export.raw_host(ALICE);
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    let list = json!({ "hostnqn": ALICE, "namespaces": [FIRST] });
    let alice = export.admit("alice", list).await;
    assert_eq!(io.read(1, 0, 1).expect("data").len(), 512, "it stays");
    io.read(2, 0, 1).expect_err("not of the list");
    let hosts = hosts_of(&export.client);
    let set = json!({ "dhchap_key": base64(&key) });
    hosts.updated(&alice, set, Some(&["dhchap_key"])).await;
    io.closed_within(SOON).expect("nothing was proved");
    reads(&target, &without).await.expect_err("without the key");
    reads(&target, &with_key).await.expect("with the key");

    // Whom the subsystem names besides does not change that.
    names(&export, BOB).await;
    reads(&target, &with_key).await.expect("an NvmeHost");
    reads(&target, &bob).await.expect("of the subsystem");
    names(&export, ALICE).await;
    reads(&target, &bob).await.expect_err("no longer");
    reads(&target, &without).await.expect_err("without the key");

    target.signal(Signal::KILL);
    let _ = target.wait(SOON);
    let target = Target::start_with(Options::default().after(&target)).await;
    let export = Export {
        client: target.client().await,
        ..export
    };
    reads(&target, &without).await.expect_err("after a restart");
    reads(&target, &with_key).await.expect("after a restart");

    // Without its NvmeHost it is admitted as the subsystem says.
    let hosts = hosts_of(&export.client);
    hosts.deleted(&alice).await;
    reads(&target, &without).await.expect("no key any more");
    // An NvmeHost that becomes that of this host, and then another's again.
    let other = export.admit("bob", host(BOB, "", &key, "")).await;
    let is = async |hostnqn: &str| {
        let object = json!({ "hostnqn": hostnqn });
        hosts.updated(&other, object, Some(&["hostnqn"])).await;
    };
    is(ALICE).await;
    reads(&target, &without).await.expect_err("without the key");
    reads(&target, &with_key).await.expect("with the key");
    is(BOB).await;
    reads(&target, &without)
        .await
        .expect("as the subsystem says");
    reads(&target, &bob).await.expect_err("bob without the key");
    target.stop();
}

/// A subsystem that SPDK pauses cannot have a view changed: the host keeps its key, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nvme_host_that_cannot_be_deleted_keeps_its_key_in_force() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let export = two(&target).await.listens().await;
    names(&export, ALICE).await;
    let key = dhchap_key(1);
    let mut object = host(ALICE, "", &key, "");
    object["namespaces"] = json!([FIRST]);
    let alice = export.admit("alice", object).await;
    export.admit("bob", host(BOB, "", "", "")).await;
    let base = malloc(&export.client, "base", 16).await;
    let slow = json!({ "volume_name_ref": base, "avg_read_latency_us": 12_000_000 });
    let of = Resource::new(&export.client, "DelayVolume");
    let slow = name_of(&of.created("", "slow", slow).await);
    let slow = namespace(&export.client, &export.subsystem, &slow, json!({})).await;

    let identity = export.raw_host(BOB);
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    let read = Command::io(2, io.cid(), 3, 0, 1).sgl(Sgl::Transport(512));
    io.send(&Pdu::capsule(read, &[])).expect("it goes");
    // A queue's commands are executed in order: the read is in flight once a later one has ended.
    io.read(1, 0, 1).expect("data");
    let removal = Tool::rpc(&socket)
        .args(["bdev_delay_delete", "slow"])
        .spawn();
    let namespaces = Resource::new(&export.client, "NvmeNamespace");
    eventually("SPDK removes the namespace", SOON, async || {
        let now = namespaces.get(&slow).await.expect("it exists");
        (now["status"]["oper_state"] == "OPER_STATE_OFFLINE").then_some(())
    })
    .await;
    let status = hosts_of(&export.client).delete(&alice).await;
    let status = status.expect_err("the subsystem cannot be paused");
    assert!(status.message().contains("could not be paused"), "{status}");
    // Answered once SPDK resumes the subsystem.
    let without = reads(&target, &export.host(ALICE)).await;
    without.expect_err("without the key");
    removal.ended().await.expect("the read has ended");
    let with_key = export
        .host(ALICE)
        .with_dhchap(&key_file(&target, "key", &key));
    reads(&target, &with_key).await.expect("with the key");

    // A host that SPDK's own command has removed is the subsystem's again when its NvmeHost becomes another's.
    let remove = ["nvmf_subsystem_remove_host", &export.nqn, ALICE];
    Tool::rpc(&socket)
        .args(remove)
        .run()
        .await
        .expect("removed");
    let carol = json!({ "hostnqn": "nqn.2022-09.io.spdk:carol" });
    hosts_of(&export.client)
        .updated(&alice, carol, Some(&["hostnqn"]))
        .await;
    reads(&target, &export.host(ALICE))
        .await
        .expect("as the subsystem says");
    target.stop();
}

/// It may be of the host that the subsystem names, or its only one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_host_that_cannot_be_read_opens_its_subsystem_to_nobody() {
    let target = Target::start().await;
    let export = two(&target).await;
    export.admit("alice", host(ALICE, "", "", "")).await;
    let export = export.listens().await;
    reads(&target, &export.host(ALICE)).await.expect("admitted");
    let next = Options::default().after(&target);
    let state = target.scratch().join("state");
    target.stop();
    break_record(&state, "nvmeSubsystems/s/nvmeHosts/alice").await;
    let target = Target::start_with(next).await;
    for nqn in [ALICE, BOB] {
        reads(&target, &export.host(nqn)).await.expect_err(nqn);
    }
    target.stop();
}

/// Makes a stored record one that cannot be read.
async fn break_record(state: &Path, name: &str) {
    let (key, _) = StateKey::find(state, None, None, false).expect("a key");
    let disk = Disk::open(state, &key).expect("a state");
    let mut entries = disk.scan(name).await.expect("the records");
    let mut entry = entries.remove(0);
    assert_eq!(entry.key, name);
    entry.object = vec![0xff];
    entry.wanted = vec![0xff];
    let changes = vec![Change::Put(entry)];
    disk.commit(changes, Vec::new()).await.expect("written");
    disk.close().await;
}
