//! `--tls`: callers over gRPC, HTTP and SPDK's JSON-RPC proxy need a certificate signed by the
//! authority.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{
    Authority, Client, HOST, Initiator, OpensslAuthority, Options, PSK, Resource, Target, Tool,
    base64, eventually, free_port, keep_private, malloc, namespace, nqn_of, subsystem,
    tcp_controller,
};
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslStream};
use opi_spdk::api::inventory::GetInventoryRequest;
use opi_spdk::api::inventory::inventory_service_client::InventoryServiceClient;
use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::own::{EventType, WatchEventsRequest};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// A certificate and its key in files.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn new(dir: &Path, authority: &Authority, of: &str, name: &str) -> Self {
        Self::of(dir, of, authority.sign(name))
    }

    fn of(dir: &Path, of: &str, (certificate, key): (rcgen::Certificate, rcgen::KeyPair)) -> Self {
        let write = |what: &str, text: String| {
            let path = dir.join(format!("{of}.{what}"));
            std::fs::write(&path, text).expect("the file can be written");
            keep_private(&path);
            path
        };
        Self {
            certificate: write("crt", certificate.pem()),
            key: write("key", key.serialize_pem()),
        }
    }
}

/// A caller with a CA and an optional certificate.
struct Caller<'a> {
    ca: &'a Path,
    pair: Option<&'a Pair>,
}

impl Caller<'_> {
    /// Connects to the gRPC port.
    async fn channel(&self, target: &Target) -> Option<Channel> {
        let read = |path: &Path| std::fs::read(path).expect("the file exists");
        let mut tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(read(self.ca)));
        if let Some(Pair { certificate, key }) = self.pair {
            tls = tls.identity(Identity::from_pem(read(certificate), read(key)));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", target.grpc));
        let endpoint = endpoint.expect("an address").tls_config(tls).expect("TLS");
        endpoint.connect().await.ok()
    }

    /// Opens a connection with the client's certificate; the server's is verified.
    fn open(&self, port: u16) -> SslStream<TcpStream> {
        let Pair { certificate, key } = self.pair.expect("the caller has a certificate");
        let mut tls = SslConnector::builder(SslMethod::tls_client()).expect("TLS");
        tls.set_ca_file(self.ca).expect("the authority");
        tls.set_certificate_file(certificate, SslFiletype::PEM)
            .expect("the certificate");
        tls.set_private_key_file(key, SslFiletype::PEM)
            .expect("its key");
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
        let timeout = Some(Duration::from_secs(15));
        stream.set_read_timeout(timeout).expect("a timeout");
        let opened = tls.build().connect("localhost", stream);
        opened.expect("the server's certificate is valid")
    }

    /// Reads the inventory over gRPC; returns the machine's number of threads.
    async fn grpc(&self, target: &Target) -> Option<u32> {
        let channel = self.channel(target).await?;
        let asked = InventoryServiceClient::new(channel)
            .get_inventory(GetInventoryRequest::default())
            .await;
        Some(asked.ok()?.into_inner().processor?.total_threads)
    }

    /// Sends a request over HTTPS with additional arguments for curl.
    async fn https(&self, port: u16, path: &str, args: &[&str]) -> Result<Value, String> {
        let mut curl = Tool::at("curl".into())
            .args(["--silent", "--show-error", "--fail", "--cacert"])
            .arg(self.ca)
            .args(args.iter().copied());
        if let Some(Pair { certificate, key }) = self.pair {
            curl = curl.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        let text = curl.arg(format!("https://localhost:{port}{path}")).run();
        serde_json::from_str(&text.await?).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn callers_need_a_certificate_signed_by_the_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, other) = (Authority::new(), Authority::new());
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, ours.pem()).expect("the file can be written");
    let pair = |authority, of, name| Pair::new(dir.path(), authority, of, name);
    let server = pair(&ours, "server", "localhost");
    let (client, stranger) = (pair(&ours, "client", "c"), pair(&other, "stranger", "c"));
    let password = dir.path().join("password");
    std::fs::write(&password, "secret\n").expect("the file can be written");
    let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&password, owner).expect("the permissions can be set");

    let show = |path: &Path| path.display().to_string();
    let tls = [&server.certificate, &server.key, &ca].map(|path| show(path));
    let rpc = free_port();
    let (options, _) = Options::default().with_rpc();
    let target = Target::spawn(&options.args([
        "--tls".to_owned(),
        tls.join(":"),
        "--spdk-rpc-http".to_owned(),
        format!("127.0.0.1:{rpc}"),
        "--spdk-rpc-user".to_owned(),
        format!("admin:{}", show(&password)),
    ]));
    let caller = |pair| Caller { ca: &ca, pair };
    let friend = caller(Some(&client));
    let soon = Duration::from_secs(30);
    let served = async || friend.grpc(&target).await;
    let threads = eventually("a client with a certificate is served", soon, served).await;

    let inventory = "/v1/inventory/1/inventory/2";
    let version = json!({ "jsonrpc": "2.0", "id": 1, "method": "spdk_get_version" }).to_string();
    let json = "content-type: application/json";
    let command = [
        "--user",
        "admin:secret",
        "--header",
        json,
        "--data",
        &version,
    ];
    let http = target.http.port();
    let told = friend.https(http, inventory, &[]).await;
    let told = told.expect("HTTP serves the client");
    assert_eq!(told["processor"]["totalThreads"], threads);
    let told = friend
        .https(rpc, "/", &command)
        .await
        .expect("the proxy serves the client");
    assert!(told["result"]["version"].is_string(), "{told}");

    for (who, pair) in [("nobody", None), ("a stranger", Some(&stranger))] {
        let caller = caller(pair);
        assert_eq!(caller.grpc(&target).await, None, "{who}");
        let refused = caller.https(http, inventory, &[]).await;
        refused.expect_err("a certificate is needed");
        let refused = caller.https(rpc, "/", &command).await;
        refused.expect_err("a certificate is needed");
    }
    for port in [target.grpc.port(), http, rpc] {
        let plain = Tool::at("curl".into()).args(["--silent", "--show-error", "--http1.1"]);
        let plain = plain.arg(format!("http://localhost:{port}{inventory}"));
        plain
            .run()
            .await
            .expect_err("a request without TLS is rejected");
    }
    target.stop();
}

#[tokio::test]
async fn changed_tls_files_are_reloaded_and_revoked_clients_rejected() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let file = |name: &str| dir.path().join(name);
    let write = |name: &str, text: String| {
        std::fs::write(file(name), text).expect("the file can be written")
    };
    write("ca.crt", authority.pem());
    write("crl", authority.revoke(&[]));
    let server = authority.sign_numbered("localhost", 1, 10);
    let server = Pair::of(dir.path(), "server", server);
    let [one, other] = [2, 3].map(|number| {
        let signed = authority.sign_numbered("c", number, 100);
        Pair::of(dir.path(), &format!("client{number}"), signed)
    });
    let ca = file("ca.crt");
    let files = [&server.certificate, &server.key, &ca].map(|path| path.display().to_string());
    let crl = file("crl").display().to_string();
    let target =
        Target::spawn(&Options::default().args(["--tls", &files.join(":"), "--tls-crl", &crl]));
    let caller = |pair| Caller {
        ca: &ca,
        pair: Some(pair),
    };
    let (one, other) = (caller(&one), caller(&other));
    let soon = Duration::from_secs(30);
    let served = async || one.grpc(&target).await;
    eventually("a client is served", soon, served).await;
    assert!(other.grpc(&target).await.is_some());
    let told = async || target.log().contains("ends soon").then_some(());
    eventually("the expiry in 10 days is logged", soon, told).await;
    let http = target.http.port();
    let scrape = async || {
        let mut curl = Tool::at("curl".into())
            .args(["--silent", "--fail", "--cacert"])
            .arg(&ca);
        let pair = one.pair.expect("the caller has a certificate");
        curl = curl
            .arg("--cert")
            .arg(&pair.certificate)
            .arg("--key")
            .arg(&pair.key);
        curl.arg(format!("https://localhost:{http}/metrics"))
            .run()
            .await
            .expect("metrics")
    };
    let ends = async || {
        let text = scrape().await;
        let mut lines = text.lines();
        let begin = "opi_spdk_tls_not_after_timestamp_seconds{file=\"certificate\"} ";
        let ends = lines
            .find_map(|line| line.strip_prefix(begin))
            .expect("the metric exists")
            .parse::<f64>();
        ends.expect("a number")
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("the clock is after the epoch").as_secs_f64();
    let days = (ends().await - now) / 86_400.0;
    assert!((9.9..10.1).contains(&days), "{days}");

    // The changed file is detected without a signal.
    write("crl", authority.revoke(&[2]));
    let refused = async || one.grpc(&target).await.is_none().then_some(());
    eventually("the revoked client is rejected", soon, refused).await;
    assert!(
        other.grpc(&target).await.is_some(),
        "other clients are still served"
    );
    write("crl", "nothing".to_owned());
    let told = async || target.log().contains("cannot be used").then_some(());
    eventually("the invalid list is logged", soon, told).await;
    assert!(
        one.grpc(&target).await.is_none(),
        "the previous list stays in force"
    );

    write("crl", authority.revoke(&[]));
    Pair::of(
        dir.path(),
        "server",
        authority.sign_numbered("localhost", 4, 100),
    );
    eventually("the client is served again", soon, async || {
        one.grpc(&target).await
    })
    .await;
    eventually("the new certificate is in use", soon, async || {
        let days = (ends().await - now) / 86_400.0;
        (days > 99.0).then_some(())
    })
    .await;
    target.stop();
}

/// Returns the serial number of the certificate that the server has shown on this connection.
fn serial(stream: &SslStream<TcpStream>) -> String {
    let certificate = stream.ssl().peer_certificate().expect("a certificate");
    let number = certificate.serial_number().to_bn().expect("a number");
    number.to_dec_str().expect("text").to_string()
}

/// Sends a request on an open HTTP/1.1 connection and reads its answer's head.
fn is_answered(stream: &mut SslStream<TcpStream>) {
    let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream
        .write_all(request.as_bytes())
        .expect("the connection is open");
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).expect("an answer");
    let head = String::from_utf8_lossy(&answer[..read]);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_the_certificate_of_new_connections_and_keeps_the_open_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, authority.pem()).expect("the file can be written");
    let pair = |of, number| {
        let signed = authority.sign_numbered("localhost", number, 100);
        Pair::of(dir.path(), of, signed)
    };
    let (server, client) = (pair("server", 4711), pair("client", 1));
    let files = [&server.certificate, &server.key, &ca].map(|path| path.display().to_string());
    let target = Target::spawn(&Options::default().args(["--tls", &files.join(":")]));
    let caller = Caller {
        ca: &ca,
        pair: Some(&client),
    };
    let soon = Duration::from_secs(30);
    let channel = eventually("a client is served", soon, async || {
        caller.channel(&target).await
    })
    .await;

    // What is under way at the reload: a stream of gRPC, a connection of HTTP, and I/O of a host over NVMe/TCP with TLS.
    let api = Client::over(channel.clone());
    let watch = ObjectServiceClient::new(channel)
        .watch_events(WatchEventsRequest::default())
        .await;
    let mut events = watch.expect("a watch").into_inner();
    let mut http = caller.open(target.http.port());
    is_answered(&mut http);
    assert_eq!(serial(&http), "4711");
    let volume = malloc(&api, "v", 16).await;
    let spec = json!({ "hostnqn": HOST, "psk": base64(PSK) });
    let exported = subsystem(&api, "s", spec).await;
    namespace(&api, &exported, &volume, json!({})).await;
    let (_, port) = tcp_controller(&api, &exported).await;
    let key = dir.path().join("psk");
    std::fs::write(&key, PSK).expect("the file can be written");
    keep_private(&key);
    let host = Initiator::tcp(port, &nqn_of("s"))
        .with_host(HOST)
        .with_psk(&key);
    let load = host.driver().load(dir.path(), 6).await;

    pair("server", 4712);
    target.signal(Signal::HUP);
    let reloaded = async || {
        let log = target.log();
        log.contains("configuration reloaded").then_some(())
    };
    eventually("the configuration is reloaded", soon, reloaded).await;
    for port in [target.grpc.port(), target.http.port()] {
        assert_eq!(serial(&caller.open(port)), "4712");
    }

    Resource::new(&api, "NullVolume")
        .created(
            "",
            "after",
            json!({ "block_size": 512, "blocks_count": 64 }),
        )
        .await;
    loop {
        let next = tokio::time::timeout(soon, events.message()).await;
        let event = next.expect("an event in time").expect("the stream goes on");
        let event = event.expect("no end");
        assert_ne!(event.r#type(), EventType::HostDisconnected, "{event:?}");
        if event.object == "nullVolumes/after" {
            break;
        }
    }
    is_answered(&mut http);
    assert_eq!(serial(&http), "4711");
    load.ended()
        .await
        .expect("all data is right, and no I/O has failed");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_revocation_list_that_is_overdue_applies_and_is_warned_of() {
    const METRIC: &str = "opi_spdk_tls_crl_next_update_timestamp_seconds{file=\"crl\"} ";
    let dir = tempfile::tempdir().expect("a directory");
    let authority = OpensslAuthority::new(dir.path()).await;
    let ended = authority.list(-8, -1).await;
    let show = |name: &str| dir.path().join(name).display().to_string();
    let files = [show("server.crt"), show("server.key"), show("ca.crt")].join(":");
    let target =
        Target::spawn(&Options::default().args(["--tls", &files, "--tls-crl", &show("crl")]));
    let made = |of: &str| Pair {
        certificate: dir.path().join(format!("{of}.crt")),
        key: dir.path().join(format!("{of}.key")),
    };
    let (ca, one, two) = (dir.path().join("ca.crt"), made("one"), made("two"));
    let caller = |pair| Caller { ca: &ca, pair };
    let soon = Duration::from_secs(30);
    let served = async || caller(Some(&one)).grpc(&target).await;
    eventually("a client that is not revoked is served", soon, served).await;
    let refused = caller(Some(&two)).grpc(&target).await;
    assert_eq!(
        refused, None,
        "the list applies although its next update is overdue"
    );

    let warnings = || {
        let log = target.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("a list of tls-crl is old"));
        lines.filter(|line| line.contains("CN=authority")).count()
    };
    let warned = async |number: usize| {
        let warned = async || (warnings() == number).then_some(());
        eventually("the list is warned of", soon, warned).await;
    };
    let next_update = async || {
        let Pair { certificate, key } = &one;
        let curl = Tool::at("curl".into()).args(["--silent", "--fail", "--cacert"]);
        let curl = curl
            .arg(&ca)
            .arg("--cert")
            .arg(certificate)
            .arg("--key")
            .arg(key);
        let port = target.http.port();
        let text = curl.arg(format!("https://localhost:{port}/metrics")).run();
        let text = text.await.expect("metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(METRIC));
        value
            .expect("the metric exists")
            .parse::<f64>()
            .expect("a number")
    };
    warned(1).await;
    assert!((next_update().await - ended).abs() < 2.0);

    // With more than a third of its life left there is no warning, and with less there is.
    let reloaded = async |end: f64| {
        let reloaded = async || ((next_update().await - end).abs() < 2.0).then_some(());
        eventually("the list is loaded", soon, reloaded).await;
    };
    reloaded(authority.list(-5, 4).await).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(warnings(), 1);
    reloaded(authority.list(-8, 2).await).await;
    warned(2).await;
    target.stop();
}
