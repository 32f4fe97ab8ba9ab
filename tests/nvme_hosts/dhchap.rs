//! DH-HMAC-CHAP with SPDK's initiator: one way and mutual, hashes and groups.

use serde_json::json;

use super::{ALICE, BOB, Export, SOON, STAY, host, hosts_of, key_file, place, reads};
use crate::common::nvme_tcp::Digests;
use crate::common::{Target, base64, dhchap_key, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_key_proves_that_it_has_it_and_the_controller_does_so_too() {
    let target = Target::start().await;
    let keys = [1, 2, 3].map(dhchap_key);
    let hosts = [
        ("alice", host(ALICE, "", &keys[0], "")),
        ("bob", host(BOB, "", &keys[1], &keys[2])),
    ];
    let export = Export::new(&target, "s", &hosts).await;
    let mut number = 0;
    let [a, b, c] = keys.map(|key| {
        number += 1;
        key_file(&target, &format!("key{number}"), &key)
    });
    let [alice, bob] = [ALICE, BOB].map(|nqn| export.host(nqn));
    for (who, host) in [
        ("alice", alice.clone().with_dhchap(&a)),
        ("bob one way", bob.clone().with_dhchap(&b)),
        (
            "bob both ways",
            bob.clone().with_dhchap(&b).with_dhchap_ctrlr(&c),
        ),
    ] {
        reads(&target, &host)
            .await
            .unwrap_or_else(|said| panic!("{who}: {said}"));
    }
    for (who, host) in [
        ("alice without a key", alice.clone()),
        ("alice with bob's", alice.with_dhchap(&b)),
        ("bob, who knows another controller", {
            let bob = bob.clone().with_dhchap(&b);
            bob.with_dhchap_ctrlr(&a)
        }),
        (
            "a stranger",
            export.host("nqn.2022-09.io.spdk:stranger").with_dhchap(&a),
        ),
    ] {
        reads(&target, &host).await.expect_err(who);
    }
    target.stop();
}

/// The 8,192-bit group is refused: its computation would block the reactor, and with it everything the reactor serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hash_and_each_group_is_taken_but_the_group_of_8192_bits() {
    let target = Target::start().await;
    let key = dhchap_key(9);
    let export = Export::new(&target, "s", &[("alice", host(ALICE, "", &key, ""))]).await;
    let file = key_file(&target, "key", &key);
    let alice = export.host(ALICE).with_dhchap(&file);
    for (hash, group) in [
        ("sha256", "null"),
        ("sha384", "ffdhe2048"),
        ("sha512", "ffdhe3072"),
        ("sha256", "ffdhe4096"),
        ("sha384", "ffdhe6144"),
    ] {
        let alice = alice.clone().with_dhchap_of(hash, group);
        let read = reads(&target, &alice).await;
        read.unwrap_or_else(|said| panic!("{hash}, {group}: {said}"));
    }
    let large = alice.with_dhchap_of("sha512", "ffdhe8192");
    reads(&target, &large).await.expect_err("8,192 bits");
    target.stop();
}

/// Else whoever came in the name of the host before would stay, and never have to prove anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_key_of_a_host_ends_connections_that_have_proved_nothing() {
    let target = Target::start().await;
    let hosts = [ALICE, BOB].map(|nqn| host(nqn, "", "", ""));
    let [alice, bob] = hosts;
    let export = Export::new(&target, "s", &[("alice", alice), ("bob", bob)]).await;
    let connect = |nqn: &str| {
        let identity = export.raw_host(nqn);
        let admin = identity.admin(Digests::OFF);
        let io = identity.io(&admin, 1);
        (admin, io)
    };
    let mut alices = connect(ALICE);
    let mut bobs = connect(BOB);
    for (_, io) in [&mut alices, &mut bobs] {
        assert_eq!(io.read(1, 0, 1).expect("data").len(), 512);
    }
    let name = "nvmeSubsystems/s/nvmeHosts/alice";
    let keys = [1, 2].map(dhchap_key);
    let set = async |key: &str| {
        let object = json!({ "dhchap_key": base64(key) });
        let set: &[&str] = &["dhchap_key"];
        hosts_of(&export.client)
            .updated(name, object, Some(set))
            .await;
    };
    set(&keys[0]).await;
    alices
        .1
        .read(1, 0, 1)
        .expect_err("the connection has ended");
    eventually("alice has gone", SOON, async || {
        export.connected(ALICE).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(
        bobs.1.read(1, 0, 1).expect("data").len(),
        512,
        "another host"
    );
    let files = [0, 1].map(|n| key_file(&target, &format!("key{n}"), &keys[n]));
    let alice = export.host(ALICE);
    reads(&target, &alice).await.expect_err("without a key");
    let alice = alice.with_dhchap(&files[0]);
    reads(&target, &alice).await.expect("with it");

    // One that has authenticated stays when the key changes.
    let load = alice.driver().load(&place(&target, "alice"), STAY).await;
    let controller = export.comes(ALICE).await;
    set(&keys[1]).await;
    assert_eq!(export.connected(ALICE).await, [controller]);
    load.stop().await.expect("no error");
    target.stop();
}
