//! Mismatched keys: the reason for which a path is refused, and its recovery once the keys match.

use serde_json::json;
use tonic::Code;

use super::{Lab, SOON, keys};
use crate::common::{Options, Resource, dhchap_key, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_does_not_fit_is_told_from_others_and_the_right_one_is_taken_after_it() {
    let [right, ctrlr, wrong] = [1, 2, 3].map(dhchap_key);
    let lab = Lab::new(Options::default(), keys(&right, &ctrlr), json!({})).await;
    let refused = async |what: &str, reason: &str| {
        let status = lab.attach().await.expect_err(what);
        assert_eq!(status.code(), Code::FailedPrecondition, "{what}: {status}");
        assert!(status.message().contains(reason), "{what}: {status}");
    };
    refused("no key", "there is no key for it here").await;
    let credential = lab.credential(keys(&wrong, "")).await;
    refused(
        "a wrong key",
        "the peer refuses this host, authentication failed",
    )
    .await;
    let credentials = lab.of("NvmeCredential");
    credentials
        .updated(&credential, keys(&right, &wrong), None)
        .await;
    refused(
        "another peer",
        "the peer does not have the controller's key",
    )
    .await;
    // The peer has no controller key, so it cannot prove itself.
    let hosts = Resource::new(&lab.peer.client().await, "NvmeHost");
    hosts
        .updated(&lab.host, keys(&right, ""), Some(&["dhchap_ctrlr_key"]))
        .await;
    refused("a peer without a key of its own", "DH-HMAC-CHAP has failed").await;
    // The peer has no key for this host at all, and does not demand authentication.
    hosts
        .updated(
            &lab.host,
            keys("", ""),
            Some(&["dhchap_key", "dhchap_ctrlr_key"]),
        )
        .await;
    refused("a peer without any key", "may have no key for this host").await;

    lab.at_peer(keys(&right, &ctrlr)).await;
    credentials
        .updated(&credential, keys(&right, &ctrlr), None)
        .await;
    lab.attach().await.expect("now they fit");
    lab.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_whose_key_is_no_longer_right_says_so_and_is_back_with_the_right_one() {
    let [old, new, ctrlr] = [1, 2, 3].map(dhchap_key);
    let lab = Lab::new(Options::default(), keys(&old, &ctrlr), json!({})).await;
    let credential = lab.credential(keys(&old, &ctrlr)).await;
    lab.attach().await.expect("they fit");
    let host = lab.export().await;

    lab.at_peer(keys(&new, &ctrlr)).await;
    lab.cut().await;
    lab.is_down("the peer refuses this host, authentication failed")
        .await;
    eventually("the log says so", SOON, async || {
        let log = lab.target.log();
        let line =
            |line: &&str| line.contains("has dropped") && line.contains("authentication failed");
        log.lines().find(line).map(|_| ())
    })
    .await;

    let credentials = lab.of("NvmeCredential");
    credentials
        .updated(&credential, keys(&new, &ctrlr), None)
        .await;
    lab.is_up().await;
    let verified = host.verify(lab.target.scratch(), 1).await;
    verified.unwrap_or_else(|said| panic!("{said}\n{}", lab.target.log()));
    lab.stop();
}
