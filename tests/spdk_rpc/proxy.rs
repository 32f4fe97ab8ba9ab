//! The HTTP proxy of SPDK's JSON-RPC.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::Target;
use crate::place::{PASSWORD, Place, admin, call, too_deep};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_proxy_forwards_for_its_user_only() {
    let place = Place::new();
    let target = Target::start_with(place.with_proxy()).await;
    let version = place.post(&admin(), call("spdk_get_version")).await;
    assert_eq!(
        (version.status, &version.body["id"]),
        (200, &json!(7)),
        "{version:?}"
    );
    assert_eq!(version.headers["content-type"], "application/json");
    let version = version.body["result"]["version"]
        .as_str()
        .expect("a version")
        .to_owned();
    assert!(version.starts_with("SPDK v26.01"), "{version}");

    let made = json!({
        "jsonrpc": "2.0", "id": 1, "method": "bdev_null_create",
        "params": { "name": "raw", "num_blocks": 8, "block_size": 512 },
    });
    assert_eq!(
        place.post(&admin(), made.to_string()).await.body["result"],
        "raw"
    );
    // An error from SPDK is a regular JSON-RPC response.
    let twice = place.post(&admin(), made.to_string()).await;
    assert_eq!(twice.status, 200);
    assert!(twice.body["error"]["code"].is_i64(), "{twice:?}");
    // A notification (no id) is executed without a response.
    let silent =
        json!({ "jsonrpc": "2.0", "method": "bdev_null_delete", "params": { "name": "raw" } });
    let answer = place.post(&admin(), silent.to_string()).await;
    assert_eq!((answer.status, answer.body), (204, Value::Null));
    // SPDK treats an id of null as a notification: such requests must release their places too.
    for _ in 0..20 {
        let null = json!({ "jsonrpc": "2.0", "id": null, "method": "spdk_get_version" });
        assert_eq!(place.post(&admin(), null.to_string()).await.status, 204);
    }
    let gone = async || place.bdevs().await.is_empty().then_some(());
    crate::common::eventually("the bdev is gone", Duration::from_secs(5), gone).await;
    // The list of all methods exceeds one packet.
    let methods = place.post(&admin(), call("rpc_get_methods")).await;
    assert!(
        methods.body["result"]
            .as_array()
            .is_some_and(|all| all.len() > 100)
    );

    for pair in ["admin:wrong", "root:correct horse", "admin:", ""] {
        let refused = place.post(pair, call("spdk_get_version")).await;
        assert_eq!(refused.status, 401, "{pair:?}");
        assert!(refused.headers.contains_key("www-authenticate"));
        assert!(refused.body["result"].is_null());
    }
    let without = place
        .http
        .send("POST", "/", &[], call("spdk_get_version").into())
        .await;
    assert_eq!(without.status, 401);
    let log = target.log();
    assert!(
        !log.contains(PASSWORD) && log.contains("bdev_null_create"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_proxy_rejects_malformed_requests_and_reports_a_missing_socket() {
    let place = Place::new();
    let target = Target::start_with(place.with_proxy()).await;
    for (body, status, code) in [
        ("{".to_owned(), 400, -32700),
        (String::new(), 400, -32700),
        (format!("{}{}", call("a"), call("b")), 400, -32700),
        ("[]".to_owned(), 400, -32600),
        (format!("[{}]", call("spdk_get_version")), 400, -32600),
        (" ".repeat(32 * 1024 + 1), 413, -32600),
        (too_deep(), 400, -32600),
    ] {
        let answer = place.post(&admin(), body.clone()).await;
        assert_eq!(
            (answer.status, &answer.body["error"]["code"]),
            (status, &json!(code)),
            "{body:.40}"
        );
    }
    // A request of the maximum length is accepted by SPDK.
    let long = call("spdk_get_version");
    let long = format!("{}{long}", " ".repeat(32 * 1024 - long.len()));
    assert_eq!(place.post(&admin(), long).await.status, 200);
    for (method, path, status) in [
        ("GET", "/", 405),
        ("PUT", "/", 405),
        ("POST", "/v1/nullVolumes", 404),
    ] {
        let answer = place.http.send(method, path, &[], Vec::new()).await;
        assert_eq!(answer.status, status, "{method} {path}");
    }
    std::fs::remove_file(place.socket()).expect("the socket can be removed");
    let answer = place.post(&admin(), call("spdk_get_version")).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["code"]),
        (502, &json!(-32603)),
        "{answer:?}"
    );
    drop(target);
}
