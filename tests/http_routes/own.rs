//! Behaviour that is independent of kinds: number formats, pages over several lists, and the gateway's
//! own errors.

use serde_json::{Value, json};

use crate::common::{Http, Target};
use crate::routes::{INVALID, NOT_FOUND, Routes, WRONG_STATE, expect_error};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn numbers_shared_lists_and_gateway_errors() {
    let target = Target::start().await;
    let routes = Routes::new(&target).await;
    let http = routes.http;
    for (id, size) in [
        ("a", json!(512)),
        ("b", json!("512")),
        ("c", json!(512.0)),
        ("d", json!(5.12e2)),
    ] {
        let body = json!({ "blockSize": size, "blocks_count": "64" });
        let made = routes
            .ok(
                "CreateNullVolume",
                "",
                &format!("null_volume_id={id}"),
                Some(&body),
            )
            .await;
        assert_eq!(
            (&made["blockSize"], &made["blocksCount"]),
            (&json!("512"), &json!("64"))
        );
        let limits = json!({ "volumeNameRef": id, "limits": { "max": { "rwBandwidthMbs": 4 } } });
        routes
            .ok(
                "CreateQosVolume",
                "",
                &format!("qosVolumeId=limit-{id}"),
                Some(&limits),
            )
            .await;
    }
    for size in [
        json!(512.5),
        json!("x"),
        json!(true),
        json!([512]),
        json!("9223372036854775808"),
    ] {
        let body = json!({ "block_size": size, "blocks_count": 64 });
        routes
            .fails("CreateNullVolume", "", "", Some(&body), INVALID)
            .await;
    }
    for id in ["e", "f"] {
        let body = json!({ "block_size": 512, "blocks_count": 64 });
        let query = format!("null_volume_id={id}");
        routes.ok("CreateNullVolume", "", &query, Some(&body)).await;
        let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=";
        let body =
            json!({ "volumeNameRef": id, "key": key, "cipher": "ENCRYPTION_TYPE_AES_XTS_128" });
        let id = format!("encryptedVolumeId=secret-{id}");
        routes
            .ok("CreateEncryptedVolume", "", &id, Some(&body))
            .await;
    }
    let all = "secret-e secret-f limit-a limit-b limit-c limit-d";
    for size in 0..=7 {
        let pages = pages(http, size).await;
        assert_eq!(pages.concat().join(" "), all, "in pages of {size}");
        let full = if size == 0 { 50 } else { size };
        assert!(
            pages.iter().all(|page| page.len() <= full),
            "in pages of {size}: {pages:?}"
        );
    }
    let own = http.send("GET", "/v1/qosVolumes", &[], vec![]).await;
    assert_eq!(
        own.body["qosVolumes"].as_array().map(Vec::len),
        Some(4),
        "{own:?}"
    );
    let own = http.send("GET", "/v1/encryptedVolumes", &[], vec![]).await;
    assert_eq!(
        own.body["encryptedVolumes"].as_array().map(Vec::len),
        Some(2),
        "{own:?}"
    );
    for bad in [
        "page_size=-1",
        "page_token=x",
        "page_token=ListQosVolumes.x",
        "page_size=1&pageSize=1",
    ] {
        let answer = http
            .send("GET", &format!("/v1/volumes?{bad}"), &[], vec![])
            .await;
        expect_error(&answer, INVALID, bad);
    }

    for (method, path, body, wanted) in [
        ("GET", "/v1/nothing", "", NOT_FOUND),
        ("GET", "/v2/nullVolumes", "", NOT_FOUND),
        ("PUT", "/v1/nullVolumes", "", (405, 12)),
        ("POST", "/v1/nullVolumes", "{\"block_size\": 512,}", INVALID),
        ("POST", "/v1/nullVolumes", "", INVALID),
        ("POST", "/v1/nullVolumes", "{} {}", INVALID),
        ("DELETE", "/v1/nullVolumes/a", "", WRONG_STATE),
    ] {
        let answer = http.send(method, path, &[], body.into()).await;
        expect_error(&answer, wanted, &format!("{method} {path} {body}"));
    }
    let broken = http
        .send(
            "POST",
            "/v1/nullVolumes",
            &[],
            "{\n  \"block_size\": ?}".into(),
        )
        .await;
    let message = broken.body["message"].as_str().expect("a text");
    assert!(
        message.contains("line 2 column 17"),
        "the message lacks the position: {message}"
    );
}

/// Reads `GET /v1/volumes`, a route shared by two lists, in pages of this size; returns the IDs.
async fn pages(http: Http, size: usize) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("/v1/volumes?page_size={size}&page_token={token}");
        let page = http.send("GET", &path, &[], vec![]).await;
        assert_eq!(page.status, 200, "{page:?}");
        let lists = ["encryptedVolumes", "qosVolumes"]
            .map(|list| page.body[list].as_array().expect("a list"));
        let name = |item: &Value| item["name"].as_str().expect("a name").to_owned();
        let id = |item| name(item).trim_start_matches("volumes/").to_owned();
        pages.push(lists.into_iter().flatten().map(id).collect());
        token = page.body["nextPageToken"]
            .as_str()
            .expect("a token")
            .to_owned();
        if token.is_empty() {
            return pages;
        }
    }
}
