//! The host that a subsystem itself names, `spec.hostnqn`, and the NvmeHost of the same NQN.

use rustix::process::Signal;
use serde_json::json;

use super::views::{FIRST, two};
use super::{ALICE, BOB, Export, SOON, host, hosts_of, key_file, reads};
use crate::common::nvme_tcp::Digests;
use crate::common::{Options, Resource, Target, base64, dhchap_key};

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
