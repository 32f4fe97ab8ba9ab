//! Roles by certificate: subjects and subject alternative names, over gRPC and HTTP with TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{DnType, SanType};
use serde_json::json;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::common::{Authority, Client, Options, Target, Tool, eventually, keep_private};
use super::{VIEWER, grant, written};

/// A client with a certificate.
struct Caller {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Caller {
    fn new(dir: &Path, of: &str, (certificate, key): (rcgen::Certificate, rcgen::KeyPair)) -> Self {
        Self {
            ca: dir.join("ca.crt"),
            certificate: written(dir, &format!("{of}.crt"), &certificate.pem()),
            key: written(dir, &format!("{of}.key"), &key.serialize_pem()),
        }
    }

    async fn grpc(&self, target: &Target) -> Option<Client> {
        let read = |path: &Path| std::fs::read(path).expect("the file exists");
        let tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(read(&self.ca)))
            .identity(Identity::from_pem(read(&self.certificate), read(&self.key)));
        let endpoint = Endpoint::from_shared(format!("https://{}", target.grpc));
        let endpoint = endpoint.expect("an address").tls_config(tls).expect("TLS");
        endpoint.connect().await.ok().map(Client::over)
    }

    /// Sends a request over HTTPS; returns the status, or the error of curl.
    async fn https(&self, target: &Target, args: &[&str], path: &str) -> Result<String, String> {
        let curl = Tool::at("curl".into())
            .args(["--silent", "--show-error", "--output", "/dev/null"])
            .args(["--write-out", "%{http_code}", "--cacert"])
            .arg(&self.ca)
            .arg("--cert")
            .arg(&self.certificate)
            .arg("--key")
            .arg(&self.key)
            .args(args.iter().copied());
        let port = target.http.port();
        let answer = curl.arg(format!("https://localhost:{port}{path}")).run();
        Ok(answer.await?.trim().to_owned())
    }
}

/// The body of a volume that an operator may create.
const NULL: &str = r#"{"blockSize":"512","blocksCount":"64"}"#;
/// The body of a subsystem, which is for admins.
const SUBSYSTEM: &str = r#"{"spec":{"nqn":"nqn.2022-09.io.spdk:none"}}"#;

/// Checks what a caller may do, as the highest of `viewer`, `operator`, `admin`, or nothing.
async fn check(caller: &Caller, target: &Target, role: Option<&str>) {
    let rank = role.map(|role| {
        ["viewer", "operator", "admin"]
            .iter()
            .position(|it| *it == role)
    });
    let rank = rank.map_or(0, |rank| rank.expect("a role") + 1);
    let client = caller.grpc(target).await.expect("the authority signed it");
    let volume = json!({ "null_volume": { "block_size": 512, "blocks_count": 64 } });
    let subsystem = json!({ "nvme_subsystem": { "spec": { "nqn": "no NQN" } } });
    let post = |body| ["--header", "content-type: application/json", "--data", body];
    for (needs, method, request, args, path) in [
        (1, "ListNullVolumes", json!({}), &[][..], "/v1/nullVolumes"),
        (
            2,
            "CreateNullVolume",
            volume,
            &post(NULL),
            "/v1/nullVolumes",
        ),
        (
            3,
            "CreateNvmeSubsystem",
            subsystem,
            &post(SUBSYSTEM),
            "/v1/nvmeSubsystems",
        ),
    ] {
        let code = client
            .call(method, request)
            .await
            .err()
            .map(|status| status.code());
        let refused = matches!(code, Some(Code::PermissionDenied | Code::Unauthenticated));
        assert_eq!(refused, rank < needs, "{role:?}: {method}: {code:?}");
        let wanted = match rank {
            0 => Code::Unauthenticated,
            _ => Code::PermissionDenied,
        };
        assert!(
            !refused || code == Some(wanted),
            "{role:?}: {method}: {code:?}"
        );
        let status = caller.https(target, args, path).await.expect("an answer");
        let refused = ["401", "403"].contains(&&*status);
        assert_eq!(refused, rank < needs, "{role:?}: {path}: {status}");
        let wanted = if rank == 0 { "401" } else { "403" };
        assert!(!refused || status == wanted, "{role:?}: {path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_has_the_roles_of_its_subject_and_its_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let (ours, others) = (Authority::new(), Authority::new());
    std::fs::write(dir.join("ca.crt"), ours.pem()).expect("the file can be written");
    let server = Caller::new(dir, "server", ours.sign("localhost"));
    keep_private(&server.key);
    let by = |role: &str, who: &str| format!("[[grant]]\nrole = {role:?}\n{who}\n");
    let text = by("viewer", "subject = \"CN=monitoring, O=Example\"")
        + &by("operator", "subject = \"CN=orchestrator\"")
        + &by("admin", "subject = \"CN=orchestrator, O=Acme\"")
        + &by("operator", "subject = 'CN=Acme\\, Inc.'")
        + &by("operator", "san = \"uri:spiffe://example/operator\"")
        + &by("operator", "san = \"email:operator@mail.example\"")
        + &by("viewer", "san = \"ip:192.0.2.7\"")
        + &by("viewer", "san = \"dns:viewer.example\"")
        + &by("admin", "san = \"admin.example\"")
        + &grant(dir, "viewer", VIEWER, "");
    let file = written(dir, "access.toml", &text);
    let show = |path: &Path| path.display().to_string();
    let tls = [&server.certificate, &server.key, &server.ca].map(|path| show(path));
    let options = Options::default().args(["--tls", &tls.join(":"), "--access-file", &show(&file)]);
    let target = Target::spawn(&options);

    let dns = |name: &str| SanType::DnsName(name.try_into().expect("a name"));
    let uri = |name: &str| SanType::URI(name.try_into().expect("a URI"));
    let email = |name: &str| SanType::Rfc822Name(name.try_into().expect("an address"));
    let common = |name| (DnType::CommonName, name);
    let signed = |of: &str, subject: &[(DnType, &str)], names| {
        Caller::new(dir, of, ours.sign_names(subject, names))
    };
    let organization = (DnType::OrganizationName, "Example");
    let monitoring = signed("m", &[common("monitoring"), organization], vec![]);
    let soon = Duration::from_secs(30);
    eventually("a client is served", soon, async || {
        monitoring.grpc(&target).await
    })
    .await;
    check(&monitoring, &target, Some("viewer")).await;
    let address = SanType::IpAddress("192.0.2.7".parse().expect("an address"));
    for (of, subject, names, role) in [
        ("o", "orchestrator", vec![], Some("operator")),
        (
            "u",
            "x",
            vec![uri("spiffe://example/operator")],
            Some("operator"),
        ),
        ("i", "x", vec![address], Some("viewer")),
        (
            "e",
            "x",
            vec![email("operator@mail.example")],
            Some("operator"),
        ),
        ("d", "x", vec![dns("viewer.example")], Some("viewer")),
        ("c", "Acme, Inc.", vec![], Some("operator")),
        // The highest of its grants counts.
        (
            "a",
            "orchestrator",
            vec![dns("b.example"), dns("admin.example")],
            Some("admin"),
        ),
        // A name in another place, or a part of a name, is another name.
        ("n1", "admin.example", vec![], None),
        ("n2", "monitoring", vec![dns("orchestrator")], None),
        (
            "n3",
            "x",
            vec![dns("a.admin.example"), uri("spiffe://example/operator/x")],
            None,
        ),
        // A name of another type is another name, even with the same text.
        ("n4", "x", vec![uri("admin.example")], None),
        ("n5", "x", vec![email("admin.example")], None),
        ("n6", "x", vec![dns("192.0.2.7")], None),
        ("n7", "x", vec![dns("spiffe://example/operator")], None),
        // One value is not the attributes that it imitates.
        ("n8", "orchestrator, O=Acme", vec![], None),
        ("n9", "orchestrator\\, O=Acme", vec![], None),
    ] {
        let caller = signed(of, &[common(subject)], names);
        check(&caller, &target, role).await;
    }
    let acme = (DnType::OrganizationName, "Acme");
    let genuine = signed("g", &[common("orchestrator"), acme], vec![]);
    check(&genuine, &target, Some("admin")).await;
    let imitation = signed("f", &[common("orchestrator, O=Acme")], vec![]);
    let client = imitation
        .grpc(&target)
        .await
        .expect("the authority signed it");
    let status = client
        .fails("ListNullVolumes", json!({}), Code::Unauthenticated)
        .await;
    let escaped = "CN=orchestrator\\, O=Acme";
    assert!(status.message().contains(escaped), "{status}");
    // The log escapes the backslash too.
    let log = target.log();
    for field in [
        "subject=\"CN=Acme\\\\, Inc.\"",
        "grant=\"subject CN=Acme\\\\, Inc.\"",
        "grant=\"san dns:admin.example\"",
    ] {
        assert!(log.contains(field), "{field}: {log}");
    }

    // A token adds to what the certificate has; the certificate of another authority has nothing.
    let plain = signed("p", &[common("nobody")], vec![]);
    let client = plain.grpc(&target).await.expect("the authority signed it");
    let status = client
        .fails("ListNullVolumes", json!({}), Code::Unauthenticated)
        .await;
    assert!(status.message().contains("CN=nobody"), "{status}");
    client
        .with_token(VIEWER)
        .ok("ListNullVolumes", json!({}))
        .await;
    let token = format!("authorization: Bearer {VIEWER}");
    let status = plain
        .https(&target, &["--header", &token], "/v1/nullVolumes")
        .await;
    assert_eq!(status.as_deref(), Ok("200"));
    let forged = others.sign_names(&[common("orchestrator")], vec![dns("admin.example")]);
    let forged = Caller::new(dir, "forged", forged);
    assert!(forged.https(&target, &[], "/v1/nullVolumes").await.is_err());
    let listed = match forged.grpc(&target).await {
        Some(client) => client.call("ListNullVolumes", json!({})).await.is_ok(),
        None => false,
    };
    assert!(!listed, "another authority's certificate has no role");
    target.stop();
}
