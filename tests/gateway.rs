//! The gateway's server: real connections, its limits, TLS and the end; and JSON of every sort.
//!
//! The services behind it here are those that need no SPDK: the inventory. All others answer
//! UNIMPLEMENTED, as tonic's router does for a service that is not there.

#[path = "common/random.rs"]
mod random;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use opi_spdk::api;
use opi_spdk::api::inventory::GetInventoryRequest;
use opi_spdk::api::inventory::inventory_service_client::InventoryServiceClient;
use opi_spdk::api::inventory::inventory_service_server::InventoryServiceServer;
use opi_spdk::gateway::{self, Limits};
use opi_spdk::inventory::InventoryService;
use random::Random;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tower::ServiceExt;

const INVENTORY: &str = "/v1/inventory/1/inventory/2";

fn routes() -> Routes {
    Routes::new(InventoryServiceServer::new(InventoryService::default()))
}

fn router(limits: Limits) -> axum::Router {
    gateway::router(api::pool(), routes(), limits).unwrap()
}

/// A gateway on a free port, until it is stopped.
struct Served {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Served {
    async fn start(limits: Limits, tls: Option<TlsAcceptor>) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopping = async {
            let _ = stopped.await;
        };
        let router = router(limits.clone());
        let server = tokio::spawn(gateway::serve(listener, router, tls, limits, stopping));
        Served {
            address,
            stop,
            server,
        }
    }

    async fn exchange(&self, request: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        exchange(stream, request).await
    }
}

/// Sends a request that asks to close, and reads status and body.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses a request may close before it has read all of it.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn http_answers_what_grpc_answers() {
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
    assert!(memory.total_usable_bytes > 0, "procfs tells the memory");
    let found = &http["memory"]["totalUsableBytes"];
    assert_eq!(*found, json!(memory.total_usable_bytes.to_string()));
    let threads = grpc.processor.unwrap().total_threads;
    assert_eq!(http["processor"]["totalThreads"], json!(threads));
    assert_eq!(http["pci"].as_array().unwrap().len(), grpc.pci.len());
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
        // tonic's router says nothing of a service that it does not have.
        assert!(status == 501 || !body["message"].as_str().unwrap().is_empty());
        assert!(body["details"].is_array());
    }
}

#[tokio::test]
async fn sizes_are_limited() {
    let limits = Limits {
        body: 1000,
        headers: 8192,
        ..Limits::default()
    };
    let served = Served::start(limits, None).await;
    let body = |length: usize| post("/v1/nullVolumes", &" ".repeat(length));
    assert_eq!(served.exchange(&body(1000)).await.0, 501);
    assert_eq!(served.exchange(&body(1001)).await.0, 413);
    let header = |length: usize| {
        let long = "y".repeat(length);
        get(INVENTORY).replace("host: x", &format!("host: x\r\nlong: {long}"))
    };
    assert_eq!(served.exchange(&header(4000)).await.0, 200);
    assert_eq!(served.exchange(&header(9000)).await.0, 431);
}

#[tokio::test]
async fn a_request_that_is_never_finished_is_given_up() {
    let limits = Limits {
        request: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = Served::start(limits, None).await;
    let begun = Instant::now();
    let unfinished = post("/v1/nullVolumes", "{}").replace("length: 2", "length: 100");
    let (status, body) = served.exchange(&unfinished).await;
    assert_eq!(status, 504, "{body}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let served = Served::start(limits, None).await;
    let mut first = TcpStream::connect(served.address).await.unwrap();
    first
        .write_all(format!("GET {INVENTORY} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
        .await
        .unwrap();
    first.read_u8().await.unwrap();
    let second = get(INVENTORY);
    let mut second = std::pin::pin!(served.exchange(&second));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut second).await;
    assert!(early.is_err(), "two connections at a time");
    drop(first);
    assert_eq!(second.await.0, 200);
}

#[tokio::test]
async fn the_end_lets_idle_connections_go() {
    let served = Served::start(Limits::default(), None).await;
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    idle.write_all(format!("GET {INVENTORY} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
        .await
        .unwrap();
    idle.read_u8().await.unwrap();
    served.stop.send(()).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), served.server).await;
    ended.expect("the server waits for an idle client").unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

mod with_tls {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use std::sync::Arc;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    struct Authority {
        certificate: rcgen::Certificate,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Authority {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            let issuer = Issuer::new(params, key);
            Authority {
                certificate,
                issuer,
            }
        }

        fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            (params.signed_by(&key, &self.issuer).unwrap(), key)
        }
    }

    /// Asks for the inventory as a client with a certificate of this authority, or without one.
    async fn ask(served: &Served, server: &Authority, client: Option<&Authority>) -> u16 {
        let mut roots = RootCertStore::empty();
        roots.add(server.certificate.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client.map(|authority| authority.sign("client")) {
            Some((certificate, key)) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                let chain = vec![certificate.der().clone()];
                config.with_client_auth_cert(chain, key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(served.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        match TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
        {
            Ok(mut stream) => {
                if stream.write_all(get(INVENTORY).as_bytes()).await.is_err() {
                    return 0;
                }
                exchange(stream, "").await.0
            }
            Err(_) => 0,
        }
    }

    #[tokio::test]
    async fn clients_need_a_certificate_of_the_authority() {
        let (ours, other) = (Authority::new(), Authority::new());
        let (certificate, key) = ours.sign("localhost");
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        let ca = ours.certificate.pem();
        let tls =
            |c: &str, k: &str, a: &str| gateway::tls(c.as_bytes(), k.as_bytes(), a.as_bytes());
        let acceptor = tls(&certificate, &key, &ca).unwrap();
        let served = Served::start(Limits::default(), Some(acceptor)).await;
        assert_eq!(ask(&served, &ours, Some(&ours)).await, 200);
        assert_eq!(ask(&served, &ours, None).await, 0);
        assert_eq!(ask(&served, &ours, Some(&other)).await, 0);
        assert_eq!(served.exchange(&get(INVENTORY)).await.0, 0, "no TLS");

        assert!(tls("", &key, &ca).err().unwrap().starts_with("certificate"));
        assert!(tls(&certificate, "", &ca).err().unwrap().starts_with("key"));
        assert!(
            tls(&certificate, &key, "x")
                .err()
                .unwrap()
                .starts_with("client CA")
        );
    }
}

#[tokio::test]
async fn the_description_is_openapi() {
    let request = Request::get("/openapi.json").body(Body::empty()).unwrap();
    let answer = router(Limits::default()).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let described: openapiv3::OpenAPI = serde_json::from_slice(&body).unwrap();
    // What OpenAPI does not know would be lost on the way through its types.
    let again = serde_json::to_value(&described).unwrap();
    let original: Json = serde_json::from_slice(&body).unwrap();
    assert_kept(&original, &again, "");
    // 88 RPCs; two of them are lists that are served together, and each on a path of its own.
    assert_eq!(described.operations().count(), 89);
}

/// Everything in `original` is in `again`; empty lists may be left out.
fn assert_kept(original: &Json, again: &Json, place: &str) {
    match original {
        Json::Object(object) => {
            for (name, value) in object {
                let place = format!("{place}/{name}");
                match again.get(name) {
                    Some(again) => assert_kept(value, again, &place),
                    None => assert!(
                        *value == json!([]) || *value == json!(false),
                        "{place} is no OpenAPI"
                    ),
                }
            }
        }
        Json::Array(array) => {
            for (i, value) in array.iter().enumerate() {
                assert_kept(value, &again[i], &format!("{place}/{i}"));
            }
        }
        Json::Number(number) => assert_eq!(number.as_f64(), again.as_f64(), "{place}"),
        other => assert_eq!(other, again, "{place}"),
    }
}

/// The descriptors drive random requests through every route: none is a fault of the server.
#[tokio::test]
async fn no_json_is_a_fault_of_the_server() {
    let router = router(Limits::default());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut built = 0;
    for _ in 0..60 {
        for rpc in api::pool()
            .services()
            .flat_map(|s| s.methods().collect::<Vec<_>>())
        {
            let extension = api::pool()
                .get_extension_by_name("google.api.http")
                .unwrap();
            let options = rpc.options();
            let rule = options.get_extension(&extension);
            let rule = rule.as_message().unwrap();
            let text = |name: &str| {
                let value = rule.get_field_by_name(name).unwrap();
                value.as_str().unwrap_or_default().to_owned()
            };
            let methods = ["get", "post", "delete", "patch"];
            let method = methods.into_iter().find(|m| !text(m).is_empty()).unwrap();
            let mut path = text(method);
            if let (Some(from), Some(to)) = (path.find('{'), path.find('=')) {
                path.replace_range(from..=to, "");
                path = path.replace('}', "");
            }
            while path.contains('*') {
                path = path.replacen('*', random.segment().trim_matches('*'), 1);
            }
            let input = rpc.input();
            let body = match input.get_field_by_name(&text("body")) {
                Some(field) => random.message(field.kind().as_message().unwrap(), 4),
                None => random.anything(5),
            };
            let body = random.damage(body.to_string().into_bytes());
            let field = input.fields().nth(random.below(input.fields().len() + 1));
            let query = match field {
                Some(field) if random.one_in(2) => {
                    format!("?{}={}", field.json_name(), random.segment())
                }
                _ => String::new(),
            };
            let request = Request::builder()
                .method(method.to_uppercase().as_str())
                .uri(format!("{path}{query}").replace(['{', '}'], "%7B"))
                .body(Body::from(body.clone()))
                .unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let status = answer.status().as_u16();
            let known = [200, 400, 404, 405, 501].contains(&status);
            let body = String::from_utf8_lossy(&body);
            assert!(known, "{status} for {method} {path}{query} {body}");
            built += u32::from(status == 501);
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            let answer: Json = serde_json::from_slice(&bytes).unwrap();
            assert!(answer.is_object());
        }
    }
    assert!(
        built > 1000,
        "only {built} requests were good enough to reach a service"
    );
}
