//! Key rotation while the host is connected.

use serde_json::json;

use super::made::{keys as keys_of, with};
use super::old_keys::later;
use super::{ALICE, Export, STAY, host, hosts_of, key_file, place, reads};
use crate::common::{Target, base64, dhchap_key, psk_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_rotate_under_verified_io_and_the_host_stays_connected() {
    rotate(200, STAY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; a shorter one runs always"]
async fn keys_rotate_a_thousand_times_under_verified_io_and_the_host_stays_connected() {
    rotate(1000, 10 * STAY).await;
}

/// Rotates the keys this many times, under I/O of the host for up to this many seconds.
async fn rotate(times: u32, seconds: u32) {
    let target = Target::start().await;
    let keys = |n: u32| {
        // Neighbours differ, and so do the first and the last.
        let n = u8::try_from(n % 251).expect("it fits");
        [psk_of(n), dhchap_key(n), dhchap_key(n.wrapping_add(128))]
    };
    let [psk, dhchap, ctrlr] = keys(0);
    let export = Export::new(&target, "s", &[("a", host(ALICE, &psk, &dhchap, &ctrlr))]).await;
    let alice = |tag: &str, [psk, dhchap, ctrlr]: [String; 3]| {
        let file = |what: &str, key: &str| key_file(&target, &format!("{what}-{tag}"), key);
        let alice = export.host(ALICE).with_psk(&file("psk", &psk));
        let alice = alice.with_dhchap(&file("dhchap", &dhchap));
        alice.with_dhchap_ctrlr(&file("ctrlr", &ctrlr))
    };
    let first = alice("first", keys(0));
    let last = alice("last", keys(times));

    let at = place(&target, "alice");
    let load = first.driver().load(&at, seconds).await;
    let controller = export.comes(ALICE).await;
    let hosts = hosts_of(&export.client);
    for n in 1..=times {
        let [psk, dhchap, ctrlr] = keys(n).map(base64);
        let object = json!({ "psk": psk, "dhchap_key": dhchap, "dhchap_ctrlr_key": ctrlr });
        hosts
            .updated("nvmeSubsystems/s/nvmeHosts/a", object, None)
            .await;
    }
    assert_eq!(export.connected(ALICE).await, [controller], "never away");
    load.stop().await.expect("all of it is verified");

    reads(&target, &last).await.expect("with the last keys");
    reads(&target, &first).await.expect_err("with the first");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_the_server_makes_rotate_with_an_overlap_under_verified_io() {
    rotate_with_overlap(20, STAY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; a shorter one runs always"]
async fn keys_that_the_server_makes_rotate_a_thousand_times_with_an_overlap_under_verified_io() {
    rotate_with_overlap(1000, 20 * STAY).await;
}

/// Rotates server-generated keys this many times, with the old keys valid until they are ended, under I/O of the host
/// for up to this many seconds. Checks every tenth of the rounds, and at the end, which keys are admitted.
async fn rotate_with_overlap(times: u32, seconds: u32) {
    const NAME: &str = "nvmeSubsystems/s/nvmeHosts/a";
    let look = (times / 10).max(1);
    let target = Target::start().await;
    let mut before = [psk_of(1), dhchap_key(2), dhchap_key(3)];
    let [psk, dhchap, ctrlr] = &before;
    let export = Export::new(&target, "s", &[("a", host(ALICE, psk, dhchap, ctrlr))]).await;
    let alice = export.host(ALICE);
    let at = place(&target, "alice");
    let first = with(&target, &alice, "first", &before);
    let load = first.driver().load(&at, seconds).await;
    let controller = export.comes(ALICE).await;
    let hosts = hosts_of(&export.client);
    for n in 1..=times {
        let rekey = json!({ "name": NAME, "old_keys_until": later(3600) });
        let answer = export.client.ok("RekeyNvmeHost", rekey).await;
        let now = keys_of(&answer, ["psk", "dhchap_key", "dhchap_ctrlr_key"]);
        if n % look == 0 {
            for (tag, keys) in [("before", &before), ("now", &now)] {
                let host = with(&target, &alice, tag, keys);
                reads(&target, &host).await.expect(tag);
            }
        }
        let over = json!({ "old_keys_until": later(0) });
        hosts.updated(NAME, over, Some(&["old_keys_until"])).await;
        if n % look == 0 {
            let host = with(&target, &alice, "before", &before);
            reads(&target, &host).await.expect_err("they have ended");
            assert_eq!(export.connected(ALICE).await, [controller], "never away");
        }
        before = now;
    }
    assert_eq!(export.connected(ALICE).await, [controller], "never away");
    load.stop().await.expect("all of it is verified");
    target.stop();
}
