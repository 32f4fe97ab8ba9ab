//! Admission of several hosts with their own keys: connecting, revocation, and persistence over a restart.

use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use super::{ALICE, BOB, Export, STAY, host, hosts_of, key_file, place, reads};
use crate::common::{Options, Target, base64, dhchap_key, psk_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_host_gets_in_over_tls_with_its_own_key_and_a_revoked_one_is_disconnected() {
    let target = Target::start().await;
    let [a, b] = [psk_of(1), psk_of(2)];
    let [for_alice, for_bob] = [host(ALICE, &a, "", ""), host(BOB, &b, "", "")];
    let hosts = [("alice", for_alice), ("bob", for_bob)];
    let export = Export::new(&target, "tls", &hosts).await;
    let [key_a, key_b] = [("a", &a), ("b", &b)].map(|(name, key)| key_file(&target, name, key));
    let alice = export.host(ALICE).with_psk(&key_a);
    let bob = export.host(BOB).with_psk(&key_b);

    for (who, host) in [
        ("alice with bob's key", export.host(ALICE).with_psk(&key_b)),
        ("alice in the clear", export.host(ALICE)),
        (
            "a stranger with alice's key",
            export.host("nqn.2022-09.io.spdk:stranger").with_psk(&key_a),
        ),
    ] {
        reads(&target, &host).await.expect_err(who);
    }
    // Both hosts are connected until one is revoked.
    let [at_alice, at_bob] = ["alice", "bob"].map(|name| place(&target, name));
    let load_a = alice.driver().load(&at_alice, STAY).await;
    let load_b = bob.driver().load(&at_bob, STAY).await;
    let controller = export.comes(ALICE).await;
    export.comes(BOB).await;
    let bobs = "nvmeSubsystems/tls/nvmeHosts/bob";
    hosts_of(&export.client).deleted(bobs).await;
    assert_eq!(export.connected(BOB).await, [0_i64; 0], "he is out");
    assert_eq!(export.connected(ALICE).await, [controller], "she stays");
    drop(load_b);
    load_a.stop().await.expect("all of hers is verified");
    reads(&target, &bob).await.expect_err("he does not get in");

    // The revoked NQN is admitted again, with another key under the same TLS identity.
    export.admit("again", host(BOB, &a, "", "")).await;
    let bob = export.host(BOB).with_psk(&key_a);
    reads(&target, &bob).await.expect("he gets in with his key");
    target.stop();
}

/// Marker bytes of the keys; only the sealed state may contain them.
const MARKS: [u8; 3] = [0xa1, 0xb2, 0xc3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_and_their_keys_are_there_again_after_a_kill_and_keys_are_told_nowhere() {
    let mut target = Target::start().await;
    let keys = [psk_of(MARKS[0]), dhchap_key(MARKS[1]), dhchap_key(MARKS[2])];
    let [psk, dhchap, ctrlr] = &keys;
    let export = Export::new(&target, "kept", &[("a", host(ALICE, psk, dhchap, ctrlr))]).await;
    let name = "nvmeSubsystems/kept/nvmeHosts/a";
    let hosts = hosts_of(&export.client);
    let shown = hosts.get(name).await.expect("it is there");
    assert_eq!(shown["hostnqn"], ALICE);
    for field in ["psk", "dhchap_key", "dhchap_ctrlr_key"] {
        assert_eq!(shown[field], "", "{shown}");
    }
    let mut bad = host(BOB, psk, &format!("{dhchap}x"), ctrlr);
    bad["hostnqn"] = json!("nqn.2022-09.io.spdk:x y");
    let refused = hosts
        .refused(&export.subsystem, "bad", bad, Code::InvalidArgument)
        .await;
    let files = ["psk", "dhchap", "dhchap-ctrlr"].map(|name| key_file(&target, name, ""));
    for (file, key) in files.iter().zip(&keys) {
        std::fs::write(file, key).expect("there is room");
    }
    let alice = export
        .host(ALICE)
        .with_psk(&files[0])
        .with_dhchap(&files[1])
        .with_dhchap_ctrlr(&files[2]);
    alice
        .verify(&place(&target, "alice"), 1)
        .await
        .expect("she gets in");

    target.signal(Signal::KILL);
    let _ = target.wait(super::SOON);
    let target = Target::start_with(Options::default().after(&target)).await;
    let client = target.client().await;
    assert_eq!(hosts_of(&client).get(name).await.expect("kept"), shown);
    reads(&target, &alice).await.expect("she gets in again");
    let without = export.host(ALICE).with_psk(&files[0]);
    reads(&target, &without).await.expect_err("without proof");
    let plain = export.host(BOB);
    reads(&target, &plain).await.expect_err("not admitted");

    let mut told = vec![target.log(), format!("{refused:?}")];
    told.push(crate::common::metrics(target.http));
    let text = told.join("\n");
    let state = target.scratch().join("state");
    let files = std::fs::read_dir(&state).expect("the state directory");
    let files = files.map(|file| std::fs::read(file.expect("a file").path()));
    let stored: Vec<Vec<u8>> = files.map(|bytes| bytes.expect("readable")).collect();
    for (key, mark) in keys.iter().zip(MARKS) {
        let bytes = [mark; 32];
        for form in [key.clone(), base64(key), base64(bytes)] {
            assert!(!text.contains(&form), "a key is told: {text}");
            let has = |bytes: &Vec<u8>| bytes.windows(form.len()).any(|w| w == form.as_bytes());
            assert!(!stored.iter().any(has), "a key is stored as it is");
        }
        let has = |stored: &Vec<u8>| stored.windows(32).any(|w| w == bytes);
        assert!(!stored.iter().any(has), "a key is stored as it is");
    }
    target.stop();
}
