//! Keys that are replaced and admit their host for a while: it changes its own when it likes.

use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

use super::made::{forms, keys, output_of, with};
use super::{ALICE, BOB, Export, SOON, STAY, host, hosts_of, place, reads};
use crate::common::{Options, Target, base64, dhchap_key, eventually, psk_of};

const NAME: &str = "nvmeSubsystems/s/nvmeHosts/alice";

/// A time so many seconds from now.
pub fn later(seconds: u64) -> String {
    let time = SystemTime::now() + Duration::from_secs(seconds);
    prost_types::Timestamp::from(time).to_string()
}

/// Keys of TLS and of DH-HMAC-CHAP.
fn some(n: u8) -> [String; 3] {
    [psk_of(n), dhchap_key(n), dhchap_key(n + 100)]
}

fn update([psk, dhchap, ctrlr]: &[String; 3]) -> Value {
    let [psk, dhchap, ctrlr] = [psk, dhchap, ctrlr].map(base64);
    json!({ "psk": psk, "dhchap_key": dhchap, "dhchap_ctrlr_key": ctrlr })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_before_admit_their_host_until_their_time_is_over_also_after_a_kill() {
    let mut target = Target::start().await;
    let [one, two] = [some(1), some(2)];
    let [psk, dhchap, ctrlr] = &one;
    let alice = [("alice", host(ALICE, psk, dhchap, ctrlr))];
    let export = Export::new(&target, "s", &alice).await;
    let alice = export.host(ALICE);
    let first = with(&target, &alice, "1", &one);
    let second = with(&target, &alice, "2", &two);
    let load = first.driver().load(&place(&target, "alice"), STAY).await;
    let controller = export.comes(ALICE).await;

    // Both hold, each for its part of the host and of the controller.
    let mut wanted = update(&two);
    wanted["old_keys_until"] = json!(later(3600));
    let hosts = hosts_of(&export.client);
    let shown = hosts.updated(NAME, wanted, None).await;
    assert!(!shown["old_keys_until"].is_null(), "{shown}");
    reads(&target, &first)
        .await
        .expect("with the keys of before");
    reads(&target, &second).await.expect("with the new ones");
    let [psk, dhchap, ctrlr] = two.clone();
    for (who, keys) in [
        ("a third psk", [psk_of(3), dhchap.clone(), ctrlr.clone()]),
        ("a third key", [psk.clone(), dhchap_key(3), ctrlr]),
        ("another controller", [psk, dhchap, one[2].clone()]),
    ] {
        let other = with(&target, &alice, "other", &keys);
        reads(&target, &other).await.expect_err(who);
    }

    // Their time is over, and nobody is cut off by it.
    let soon = json!({ "old_keys_until": later(2) });
    hosts.updated(NAME, soon, Some(&["old_keys_until"])).await;
    eventually("the keys of before end", SOON, async || {
        reads(&target, &first).await.is_err().then_some(())
    })
    .await;
    eventually("the record tells of none", SOON, async || {
        let shown = hosts.get(NAME).await.expect("it is there");
        shown["old_keys_until"].is_null().then_some(())
    })
    .await;
    reads(&target, &second).await.expect("with the new ones");
    assert_eq!(export.connected(ALICE).await, [controller], "never away");
    load.stop().await.expect("all of it is verified");

    // Over a kill, with keys that the server has made.
    let rekey = json!({ "name": NAME, "old_keys_until": later(3600) });
    let answer = export.client.ok("RekeyNvmeHost", rekey).await;
    let three = keys(&answer, ["psk", "dhchap_key", "dhchap_ctrlr_key"]);
    let third = with(&target, &alice, "3", &three);
    target.signal(Signal::KILL);
    let _ = target.wait(SOON);
    let mut target = Target::start_with(Options::default().after(&target)).await;
    let client = target.client().await;
    reads(&target, &second)
        .await
        .expect("with the keys of before");
    reads(&target, &third).await.expect("with the new ones");

    // An answer that was lost: other new keys, beside those of before.
    let rekey = json!({ "name": NAME, "old_keys_until": later(3600) });
    let refused = client
        .fails("RekeyNvmeHost", rekey, Code::FailedPrecondition)
        .await;
    assert!(
        refused.message().contains("old keys hold until"),
        "{refused}"
    );
    let answer = client.ok("RekeyNvmeHost", json!({ "name": NAME })).await;
    let four = keys(&answer, ["psk", "dhchap_key", "dhchap_ctrlr_key"]);
    let fourth = with(&target, &alice, "4", &four);
    reads(&target, &third).await.expect_err("they are replaced");
    reads(&target, &second)
        .await
        .expect("with the keys of before");
    let over = json!({ "old_keys_until": later(0) });
    let hosts = hosts_of(&client);
    hosts.updated(NAME, over, Some(&["old_keys_until"])).await;
    reads(&target, &second).await.expect_err("they have ended");
    reads(&target, &fourth).await.expect("with the new ones");

    // Stored once more, and told nowhere.
    let rekey = json!({ "name": NAME, "old_keys_until": later(3600) });
    client.ok("RekeyNvmeHost", rekey).await;
    target.stop_with(Signal::TERM);
    let state = target.scratch().join("state");
    let at = state.display().to_string();
    let mut said = output_of(&["state", "export", "--state-dir", &at]);
    said.extend(target.log().into_bytes());
    for file in state.read_dir().expect("a directory") {
        said.extend(std::fs::read(file.expect("a file").path()).expect("readable"));
    }
    for form in [one, two, three, four]
        .iter()
        .flatten()
        .flat_map(|key| forms(key))
    {
        let found = said.windows(form.len()).any(|part| part == form);
        assert!(!found, "a key is told");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_for_keys_of_before_is_one_that_some_key_can_use() {
    let target = Target::start().await;
    let [one, two] = [some(1), some(2)];
    let [psk, dhchap, ctrlr] = &one;
    let alice = [("alice", host(ALICE, psk, dhchap, ctrlr))];
    let export = Export::new(&target, "s", &alice).await;
    let hosts = hosts_of(&export.client);
    let mut bob = host(BOB, psk, "", "");
    bob["old_keys_until"] = json!(later(60));
    hosts
        .refused(&export.subsystem, "bob", bob, Code::InvalidArgument)
        .await;
    for (until, fields, said) in [
        (later(60), json!({}), "no key is replaced"),
        (later(31 * 24 * 3600), update(&two), "30 days"),
        ("1960-01-01T00:00:00Z".to_owned(), update(&two), "1970"),
        (
            later(60),
            json!({ "dhchap_ctrlr_key": base64(&two[2]) }),
            "dhchap_key",
        ),
        (later(60), json!({ "hostnqn": BOB }), "hostnqn"),
    ] {
        let mut object = fields;
        object["name"] = json!(NAME);
        object["old_keys_until"] = json!(until);
        let request = json!({ "nvme_host": object });
        let refused = export
            .client
            .fails("UpdateNvmeHost", request, Code::InvalidArgument)
            .await;
        assert!(refused.message().contains(said), "{refused}");
    }
    let first = with(&target, &export.host(ALICE), "1", &one);
    reads(&target, &first).await.expect("nothing has changed");
    target.stop();
}
