//! Key rotation while paths are connected and serve I/O.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tonic::Code;

use super::{Lab, SOON, keys};
use crate::common::{Options, dhchap_key, eventually};

/// Keeps the old keys valid for an hour.
fn with_old_keys(mut keys: Value) -> Value {
    let time = SystemTime::now() + Duration::from_secs(3600);
    keys["old_keys_until"] = json!(prost_types::Timestamp::from(time).to_string());
    keys
}

/// Returns the n-th pair of keys.
fn some(n: u8) -> Value {
    keys(&dhchap_key(n), &dhchap_key(n + 100))
}

/// Waits until hosts of the target have written to the remote namespace.
async fn writes(lab: &Lab) {
    let stats = json!({ "name": lab.controller });
    eventually("there is I/O", SOON, async || {
        let stats = lab
            .client
            .ok("StatsNvmeRemoteController", stats.clone())
            .await;
        (stats["stats"]["write_ops_count"].as_i64()? > 0).then_some(())
    })
    .await;
}

/// With 2 entries a queue and 16 I/Os at once, the queue is full and I/O is queued whenever the keys change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_rotate_under_verified_io_and_the_path_stays_connected() {
    let controller = json!({ "queue_size": 2 });
    let lab = Lab::new(Options::default(), some(0), controller).await;
    let credential = lab.credential(some(0)).await;
    lab.attach().await.expect("they fit");
    let host = lab.export().await;
    let load = host.driver().load(lab.target.scratch(), 120).await;
    writes(&lab).await;
    let connected = lab.connected().await;
    assert_eq!(connected.len(), 1, "{connected:?}");

    let credentials = lab.of("NvmeCredential");
    for n in 1..=50 {
        lab.at_peer(with_old_keys(some(n))).await;
        credentials.updated(&credential, some(n), None).await;
        // End the old keys, so that the next change starts without any.
        lab.at_peer(json!({ "old_keys_until": "2020-01-01T00:00:00Z" }))
            .await;
    }
    assert_eq!(lab.connected().await, connected, "never away");
    load.stop().await.expect("all of it is verified");
    lab.cut().await;
    eventually("it comes back", SOON, async || {
        let now = lab.connected().await;
        (!now.is_empty() && now != connected).then_some(())
    })
    .await;
    lab.is_up().await;
    lab.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_peer_refuses_is_not_taken_and_io_goes_on_with_the_one_before() {
    let bad = keys(&dhchap_key(2), &dhchap_key(101));
    is_not_taken(bad, "the peer refuses this host, authentication failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_peer_does_not_have_is_not_taken() {
    let bad = keys(&dhchap_key(1), &dhchap_key(102));
    is_not_taken(bad, "the peer does not have the controller's key").await;
}

/// Expects these keys to be refused for this reason, and the connection to be restored with the previous keys.
async fn is_not_taken(bad: Value, reason: &str) {
    let lab = Lab::new(Options::default(), some(1), json!({})).await;
    let credential = lab.credential(some(1)).await;
    lab.attach().await.expect("they fit");
    let host = lab.export().await;
    let load = host.driver().load(lab.target.scratch(), 120).await;
    writes(&lab).await;

    let credentials = lab.of("NvmeCredential");
    let before = lab.connected().await;
    // Retries at once: the refused connection is reconnecting meanwhile.
    for _ in 0..3 {
        let request = credentials.update_request(&credential, bad.clone(), None);
        let method = "UpdateNvmeCredential";
        let refused = lab.client.fails(method, request, Code::FailedPrecondition);
        let status = refused.await;
        assert!(status.message().contains(reason), "{status}");
    }
    // SPDK reconnects by itself with the previous keys.
    eventually("it is connected anew", SOON, async || {
        let now = lab.connected().await;
        (now.len() == 1 && now != before).then_some(())
    })
    .await;
    lab.is_up().await;
    load.stop().await.expect("all of it is verified");
    lab.at_peer(with_old_keys(some(3))).await;
    credentials.updated(&credential, some(3), None).await;
    lab.stop();
}

/// The order in which host and target get and lose their keys does not matter: the path works again after either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_to_a_path_that_had_none_and_go_from_it_while_it_is_connected() {
    let lab = Lab::new(Options::default(), json!({}), json!({})).await;
    lab.attach().await.expect("nobody asks for keys");
    let connected = lab.connected().await;
    let credential = lab.credential(keys(&dhchap_key(1), "")).await;
    lab.at_peer(keys(&dhchap_key(1), "")).await;
    // The peer ends a connection that has proved nothing when its host gets its first key.
    eventually("the path comes again, with the key", SOON, async || {
        let now = lab.connected().await;
        (!now.is_empty() && now != connected).then_some(())
    })
    .await;
    lab.is_up().await;
    lab.cut().await;
    lab.is_up().await;

    lab.of("NvmeCredential").deleted(&credential).await;
    lab.cut().await;
    lab.is_down("there is no key for it here").await;
    lab.credential(keys(&dhchap_key(1), "")).await;
    lab.is_up().await;
    lab.stop();
}
