//! HTTP requests that must be rejected.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use serde_json::json;
use tonic::Code;

use crate::common::{Fixture, Http, Options, Resource, Target, check_details, subsystem};
use crate::{ANSWER, dial, exchange, status, with_proxy};

const BODY: &str = r#"{"block_size": 512, "blocks_count": 64}"#;

/// An HTTP/1.1 create request with these headers.
fn create(id: &str, headers: &str) -> Vec<u8> {
    let length = BODY.len();
    format!(
        "POST /v1/nullVolumes?null_volume_id={id} HTTP/1.1\r\n{headers}content-length: {length}\r\n\
         connection: close\r\n\r\n{BODY}"
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cross_origin_requests_are_rejected() {
    let target = Target::start().await;
    let json = "content-type: application/json\r\n";
    let own = format!("host: {}\r\n", target.http);
    for (id, headers, refused) in [
        ("plain", format!("{own}content-type: text/plain\r\n"), 415),
        (
            "form",
            format!("{own}content-type: application/x-www-form-urlencoded\r\n"),
            415,
        ),
        ("untyped", own.clone(), 415),
        ("rebound", format!("host: evil.example\r\n{json}"), 403),
        (
            "origin",
            format!("{own}{json}origin: http://evil.example\r\n"),
            403,
        ),
        ("no-origin", format!("{own}{json}origin: null\r\n"), 403),
        (
            "site",
            format!("{own}{json}sec-fetch-site: cross-site\r\n"),
            403,
        ),
    ] {
        let answer = exchange(target.http, &create(id, &headers), ANSWER);
        assert_eq!(status(&answer), refused, "{id}: {answer}");
    }
    let http = Http(target.http);
    let list = http.send("GET", "/v1/nullVolumes", &[], Vec::new()).await;
    assert_eq!(
        list.body["null_volumes"].as_array().map_or(0, Vec::len),
        0,
        "{list:?}"
    );
    assert_eq!(
        list.body["nullVolumes"].as_array().map_or(0, Vec::len),
        0,
        "{list:?}"
    );
    for (id, headers) in [
        ("program", format!("{own}{json}")),
        (
            "page",
            format!(
                "{own}{json}origin: http://{}\r\nsec-fetch-site: same-origin\r\n",
                target.http
            ),
        ),
    ] {
        let answer = exchange(target.http, &create(id, &headers), ANSWER);
        assert_eq!(status(&answer), 200, "{id}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_allowed_origins_may_read_responses() {
    let target = Target::start_with(Options::default().args([
        "--http-origins",
        "https://console.example",
        "--http-hosts",
        "dpu.example",
    ]))
    .await;
    let get = |origin: &str| {
        let request = format!(
            "GET /v1/nullVolumes HTTP/1.1\r\nhost: dpu.example:8082\r\norigin: {origin}\r\n\
             sec-fetch-site: cross-site\r\nconnection: close\r\n\r\n"
        );
        exchange(target.http, request.as_bytes(), ANSWER)
    };
    let allowed = get("https://console.example");
    assert_eq!(status(&allowed), 200, "{allowed}");
    assert!(
        allowed
            .to_ascii_lowercase()
            .contains("access-control-allow-origin: https://console.example"),
        "{allowed}"
    );
    assert_eq!(status(&get("https://console.example.evil")), 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn encoded_separators_in_paths_do_not_separate() {
    let target = Target::start().await;
    let own = format!(
        "host: {}\r\ncontent-type: application/json\r\n",
        target.http
    );
    assert_eq!(
        status(&exchange(target.http, &create("a", &own), ANSWER)),
        200
    );
    let get = |path: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        status(&exchange(target.http, request.as_bytes(), ANSWER))
    };
    assert_eq!(get("/v1/nullVolumes/a"), 200);
    assert_eq!(get("/v1/nullVolumes/a:stats"), 200);
    assert_eq!(get("/v1/nullVolumes%2Fa"), 404);
    // `a%3Astats` is the ID `a:stats`, which is invalid, not the custom method.
    assert_ne!(get("/v1/nullVolumes/a%3Astats"), 200);
}

/// A client that sends `Expect: 100-continue` with a 100 MB body gets the rejection before it sends the
/// body.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_oversized_body_is_rejected_before_it_is_sent() {
    let target = Target::start().await;
    let request = "POST /v1/nullVolumes HTTP/1.1\r\nhost: localhost\r\n\
        content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 104857600\r\n\r\n";
    let mut stream = dial(target.http, ANSWER);
    stream.write_all(request.as_bytes()).expect("sent");
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 413");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn password_guesses_are_throttled_and_logged() {
    let (target, address, _socket) = with_proxy().await;
    // "admin:wrong"
    let request =
        b"POST / HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic YWRtaW46d3Jvbmc=\r\n\
        content-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    let begun = Instant::now();
    let guesses: Vec<_> = (0..12)
        .map(|_| std::thread::spawn(move || status(&exchange(address, request, ANSWER))))
        .collect();
    let answers: Vec<u16> = guesses
        .into_iter()
        .map(|guess| guess.join().expect("no panic"))
        .collect();
    assert!(begun.elapsed() >= Duration::from_millis(500), "{answers:?}");
    assert!(
        answers.iter().all(|answer| matches!(answer, 401 | 429)),
        "{answers:?}"
    );
    assert!(answers.contains(&429), "{answers:?}");
    // A client that disconnects before the response is throttled too.
    let begun = Instant::now();
    let given_up = (0..60).any(|_| {
        let mut guess = dial(address, Duration::from_millis(60));
        guess.write_all(request).expect("sent");
        let mut begin = [0; 12];
        guess.read_exact(&mut begin).is_ok() && &begin == b"HTTP/1.1 429"
    });
    assert!(
        given_up,
        "60 guesses in {:?} without a 429",
        begun.elapsed()
    );
    let log = target.log();
    let told = log
        .lines()
        .filter(|line| line.contains("wrong user or password"))
        .count();
    assert!((1..=3).contains(&told), "{told} lines:\n{log}");
    assert!(!log.contains("YWRtaW46d3Jvbmc="), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_key_with_a_newline_is_rejected() {
    let target = Target::start().await;
    let fixture = Fixture::tcp(&target, 4).await;
    let psk = format!("{}\n", crate::common::PSK);
    let object = json!({ "spec": {
        "nqn": "nqn.2022-09.io.spdk:newline", "hostnqn": crate::common::HOST,
        "psk": crate::common::base64(psk),
    }});
    let request = json!({ "nvme_subsystem_id": "newline", "nvme_subsystem": object });
    let status = fixture
        .client
        .fails("CreateNvmeSubsystem", request, tonic::Code::InvalidArgument)
        .await;
    assert!(status.message().contains("white space"), "{status}");
    subsystem(&fixture.client, "without-key", json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_message_that_cannot_be_decoded_is_an_invalid_argument() {
    let target = Target::start().await;
    let client = target.client().await;
    let path = "/opi_api.storage.v1.NullVolumeService/CreateNullVolume";
    // A length of 127 without data; an unknown wire type; a string that is not UTF-8.
    for bytes in [&[0x12, 0x7f][..], &[0x0f], &[0x12, 0x02, 0xff, 0xfe]] {
        let answer = client.call_raw(path, Bytes::copy_from_slice(bytes)).await;
        let status = answer.expect_err("the message cannot be decoded");
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{bytes:02x?}: {status}"
        );
        check_details(&status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_remote_controller_id_too_long_for_its_bdevs_is_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let controllers = Resource::new(&client, "NvmeRemoteController");
    let object = json!({ "multipath": "NVME_MULTIPATH_DISABLE" });
    let status = controllers
        .refused("", &"c".repeat(50), object.clone(), Code::InvalidArgument)
        .await;
    assert!(status.message().contains("50 characters"), "{status}");
    assert!(status.message().contains("may have 49"), "{status}");
    controllers.created("", &"c".repeat(49), object).await;
    target.stop();
}
