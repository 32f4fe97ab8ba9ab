//! Validation of credentials, confidentiality of keys, and persistence over a restart.

use serde_json::json;
use tonic::Code;

use super::{Lab, keys};
use crate::common::{HOST, Options, base64, dhchap_key};

/// Marker contained in each key: in clear text and in base64.
const MARK: [&str; 2] = ["HUSH", "SFVTS"];

/// Returns a key of `HUSH` repeated, told apart by its last byte.
fn marked(last: u8) -> String {
    let mut key = b"HUSHHUSHHUSHHUSHHUSHHUSHHUSHHUSH".to_vec();
    key[31] = last;
    let crc = crc32fast::hash(&key).to_le_bytes();
    key.extend(crc);
    format!("DHHC-1:00:{}:", base64(key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_cannot_be_and_second_ones_for_a_host_are_refused() {
    let lab = Lab::new(Options::default(), json!({}), json!({})).await;
    let credentials = lab.of("NvmeCredential");
    let good = dhchap_key(1);
    for (object, field) in [
        (json!({ "hostnqn": HOST }), "dhchap_key"),
        (json!({ "dhchap_key": base64(&good) }), "hostnqn"),
        (
            json!({ "hostnqn": HOST, "dhchap_key": base64("secret") }),
            "dhchap_key",
        ),
        (
            json!({ "hostnqn": HOST, "dhchap_key": base64(format!("{good}\n")) }),
            "dhchap_key",
        ),
        (
            json!({ "hostnqn": HOST, "dhchap_key": base64(&good), "dhchap_ctrlr_key": base64("x") }),
            "dhchap_ctrlr_key",
        ),
        (
            json!({ "hostnqn": "me", "dhchap_key": base64(&good) }),
            "hostnqn",
        ),
    ] {
        let refused = credentials.refused(&lab.controller, "bad", object, Code::InvalidArgument);
        let status = refused.await;
        assert!(status.message().contains(field), "{field}: {status}");
        assert!(!status.message().contains("secret"), "{status}");
    }
    let object = json!({ "hostnqn": HOST, "dhchap_key": base64(&good) });
    let missing = "nvmeRemoteControllers/missing";
    credentials
        .refused(missing, "keys", object.clone(), Code::NotFound)
        .await;
    let made = lab.credential(keys(&good, "")).await;
    let status = credentials
        .refused(&lab.controller, "second", object, Code::AlreadyExists)
        .await;
    assert!(status.message().contains(HOST), "{status}");
    // The controller cannot be deleted while it has a credential, but can be updated.
    let controllers = lab.of("NvmeRemoteController");
    let deleted = controllers.delete(&lab.controller).await;
    let status = deleted.expect_err("it has keys");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    controllers
        .updated(&lab.controller, json!({ "queue_size": 64 }), None)
        .await;
    credentials.deleted(&made).await;
    controllers.deleted(&lab.controller).await;
    lab.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_is_back_with_its_keys_after_a_kill_and_they_are_nowhere_to_be_read() {
    let both = keys(&marked(1), &marked(2));
    let options = Options::default().args(["--log-level", "debug"]);
    let mut lab = Lab::new(options.clone(), both.clone(), json!({})).await;
    let credential = lab.credential(both.clone()).await;
    let wrong = keys(&marked(3), &marked(2));
    lab.attach().await.expect("they fit");
    let credentials = lab.of("NvmeCredential");
    let mut told = vec![format!("{:?}", credentials.get(&credential).await)];
    told.push(format!("{:?}", credentials.list(&lab.controller).await));
    let refused = credentials.update(&credential, wrong, None).await;
    told.push(format!("{:?}", refused.expect_err("the peer refuses it")));
    lab.is_up().await;
    lab.target.kill();
    told.push(lab.target.log());

    let mut again = crate::common::Target::start_with(options.after(&lab.target)).await;
    lab.client = again.client().await;
    std::mem::swap(&mut again, &mut lab.target);
    lab.is_up().await;
    let host = lab.export().await;
    let verified = host.verify(lab.target.scratch(), 1).await;
    verified.unwrap_or_else(|said| panic!("{said}\n{}", lab.target.log()));
    told.push(lab.target.log());
    told.push(crate::common::metrics(lab.target.http));
    for dir in [lab.target.scratch(), again.scratch()] {
        let files = std::fs::read_dir(dir.join("state")).expect("a state directory");
        for file in files.map(|file| file.expect("it is there").path()) {
            // The sealing key's file lies here too, readable by its owner only.
            let bytes = std::fs::read(&file).unwrap_or_default();
            told.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    for text in &told {
        for mark in MARK {
            assert!(!text.contains(mark), "{mark} in:\n{text}");
        }
    }
    drop(again);
    lab.stop();
}
