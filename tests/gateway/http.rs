//! HTTP as a client sees it: responses, errors, methods, HTTP versions.

use axum::body::Body;
use axum::http::Request;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opi_spdk::api::inventory::GetInventoryRequest;
use opi_spdk::api::inventory::inventory_service_client::InventoryServiceClient;
use opi_spdk::gateway::Limits;
use serde_json::{Value as Json, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tower::ServiceExt;

use crate::common::Tool;
use crate::served::{INVENTORY, Served, exchange, get, post, router, routes};

#[tokio::test]
async fn http_and_grpc_return_the_same() {
    let request = GetInventoryRequest {
        name: "inventory/1/inventory/2".into(),
    };
    let grpc = InventoryServiceClient::new(routes())
        .get_inventory(request)
        .await
        .unwrap()
        .into_inner();
    let served = Served::start(Limits::default(), None).await;
    let (status, body) = served.exchange(&get(INVENTORY)).await;
    assert_eq!(status, 200, "{body}");
    let http: Json = serde_json::from_str(&body).unwrap();
    let memory = grpc.memory.unwrap();
    assert!(
        memory.total_usable_bytes > 0,
        "the memory is read from procfs"
    );
    let found = &http["memory"]["totalUsableBytes"];
    assert_eq!(*found, json!(memory.total_usable_bytes.to_string()));
    let threads = grpc.processor.unwrap().total_threads;
    assert_eq!(http["processor"]["totalThreads"], json!(threads));
    let mut devices: Vec<String> = std::fs::read_dir("/sys/bus/pci/devices")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    devices.sort();
    let addresses = |all: &Json| -> Vec<String> {
        let all = all.as_array().unwrap().iter();
        all.map(|device| device["address"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(addresses(&http["pci"]), devices);
    for (told, device) in http["pci"].as_array().unwrap().iter().zip(&grpc.pci) {
        assert_eq!(told["vendor"], device.vendor);
        assert_eq!(told["product"], device.product);
        assert_eq!(told["driver"], device.driver);
    }
}

/// curl loses an HTTP/2 response that arrives before the end of the request: the server must read the
/// request first.
#[tokio::test]
async fn curl_gets_responses_to_unread_bodies_over_http2() {
    let served = Served::start(Limits::default(), None).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    for (kib, times) in [(9, 40), (1 << 10, 5), (6 << 10, 5)] {
        file.as_file().set_len(kib << 10).unwrap();
        let data = format!("@{}", file.path().display());
        for (method, path, code) in [
            ("POST", "/v1/nothing", 5),
            ("DELETE", "/v1/nullVolumes/a", 12),
            ("POST", "/v1/nullVolumes", 3),
        ] {
            for attempt in 0..times {
                let url = format!("http://{}{path}", served.address);
                let curl = Tool::at("curl".into())
                    .args(["--silent", "--show-error", "--http2-prior-knowledge"])
                    .args(["--header", "content-type: application/json"])
                    .args(["--data-binary", &data, "--request", method, &url]);
                let what = || format!("{method} {kib} KiB, {attempt}");
                let answer = curl.run().await;
                let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", what()));
                let answer: Json = serde_json::from_str(&answer).unwrap();
                assert_eq!(answer["code"], code, "{}: {answer}", what());
            }
        }
    }
}

#[tokio::test]
async fn errors_have_their_status_and_body() {
    let served = Served::start(Limits::default(), None).await;
    for (request, status, code) in [
        (get("/v1/nothing"), 404, 5),
        (get("/"), 404, 5),
        (post(INVENTORY, ""), 405, 12),
        (get("/v1/nullVolumes/a"), 501, 12),
        (post("/v1/nullVolumes", "{"), 400, 3),
        (post("/v1/nullVolumes?nullVolumeID=a", "{}"), 400, 3),
    ] {
        let (found, body) = served.exchange(&request).await;
        assert_eq!(found, status, "{request}{body}");
        let body: Json = serde_json::from_str(&body).unwrap();
        assert_eq!(body["code"], code, "{request}");
        // tonic's router sends no message for an unknown service.
        assert!(status == 501 || !body["message"].as_str().unwrap().is_empty());
        assert!(body["details"].is_array());
    }
}

#[tokio::test]
async fn an_unsupported_method_is_rejected_with_an_allow_header() {
    let router = router(Limits::default());
    for (method, path, allowed) in [
        ("PUT", "/v1/nullVolumes", "POST, GET, HEAD"),
        ("OPTIONS", "/v1/nullVolumes/a", "GET, PATCH, DELETE, HEAD"),
        ("PUT", INVENTORY, "GET, HEAD"),
        ("POST", "/v1/nullVolumes/a:stats", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ] {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 405, "{method} {path}");
        let mut found: Vec<_> = answer.headers().get_all("allow").iter().collect();
        assert_eq!(found.len(), 1, "{method} {path}: {found:?}");
        let mut found: Vec<&str> = found.remove(0).to_str().unwrap().split(", ").collect();
        let mut wanted: Vec<&str> = allowed.split(", ").collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{method} {path}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: Json = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], 12, "{method} {path}");
    }
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    let served = Served::start(Limits::default(), None).await;
    for path in [INVENTORY, "/openapi.json", "/v1/nothing"] {
        let (status, body) = served.exchange(&get(path)).await;
        let head = served.exchange(&get(path).replace("GET", "HEAD")).await;
        assert_eq!(head, (status, String::new()), "{path}");
        assert!(!body.is_empty());
    }
}

#[tokio::test]
async fn a_client_that_shuts_down_its_side_gets_its_response() {
    let served = Served::start(Limits::default(), None).await;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(get(INVENTORY).as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(exchange(stream, "").await.0, 200);
    }
}

#[tokio::test]
async fn a_grpc_timeout_header_limits_the_request() {
    let served = Served::start(Limits::default(), None).await;
    let with = |request: String, timeout: &str| {
        request.replace(
            "host: localhost",
            &format!("host: localhost\r\ngrpc-timeout: {timeout}"),
        )
    };
    let unfinished = post("/v1/nullVolumes", "{}").replace("length: 2", "length: 100");
    let (status, body) = served.exchange(&with(unfinished, "200m")).await;
    let body: Json = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["code"]), (504, &json!(4)), "{body}");
    assert_eq!(served.exchange(&with(get(INVENTORY), "5S")).await.0, 200);
    for bad in ["soon", "5", "-1S", "123456789S"] {
        let (status, body) = served.exchange(&with(get(INVENTORY), bad)).await;
        assert_eq!(status, 400, "{bad}: {body}");
        assert!(body.contains("grpc-timeout"), "{body}");
    }
}

/// A request for the inventory.
fn question(served: &Served) -> Request<Empty<Bytes>> {
    let uri = format!("http://{}{INVENTORY}", served.address);
    Request::get(uri).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let served = Served::start(Limits::default(), None).await;
    let connect = async || TokioIo::new(TcpStream::connect(served.address).await.unwrap());

    let (mut one, connection) = http1::handshake(connect().await).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let answer = one.send_request(question(&served)).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
        one.ready().await.expect("the connection is kept alive");
    }

    let (two, connection) = http2::handshake(TokioExecutor::new(), connect().await)
        .await
        .unwrap();
    tokio::spawn(connection);
    let answers = join_all((0..20).map(|_| two.clone().send_request(question(&served)))).await;
    for answer in answers {
        let body = answer.unwrap().into_body().collect().await.unwrap();
        let body: Json = serde_json::from_slice(&body.to_bytes()).unwrap();
        assert!(body["memory"].is_object(), "{body}");
    }
}
