//! TLS handshakes with certificates that are expensive to verify or unusable.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::ANSWER;
use crate::common::{Options, Target, Tool, eventually, keep_private};

/// A certificate and its private key.
struct Signed {
    certificate: X509,
    key: PKey<Private>,
}

/// Creates a certificate of this X.509 version, signed by `by` or self-signed.
fn sign(name: &str, version: i32, by: Option<&Signed>, is_ca: bool) -> Signed {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    let key = PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key");
    let name_of = |name: &str| {
        let mut builder = X509Name::builder().expect("a name");
        builder
            .append_entry_by_nid(Nid::COMMONNAME, name)
            .expect("a name");
        builder.build()
    };
    let mut builder = X509::builder().expect("a certificate");
    let (subject, now, later) = (
        name_of(name),
        Asn1Time::days_from_now(0).expect("a time"),
        Asn1Time::days_from_now(1).expect("a time"),
    );
    let issuer = by.map_or(subject.as_ref(), |by| by.certificate.subject_name());
    // The encoded version counts from 0.
    builder.set_version(version - 1).expect("a version");
    builder.set_subject_name(&subject).expect("a subject");
    builder.set_issuer_name(issuer).expect("an issuer");
    builder.set_pubkey(&key).expect("a key");
    builder.set_not_before(&now).expect("a time");
    builder.set_not_after(&later).expect("a time");
    if version == 3 {
        let mut constraints = BasicConstraints::new();
        let constraints = if is_ca {
            constraints.critical().ca()
        } else {
            &mut constraints
        };
        builder
            .append_extension(constraints.build().expect("an extension"))
            .expect("room");
        if !is_ca {
            let context = builder.x509v3_context(None, None);
            let mut names = SubjectAlternativeName::new();
            let names = names
                .dns("localhost")
                .build(&context)
                .expect("an extension");
            builder.append_extension(names).expect("room");
        }
    }
    let signer = by.map_or(&key, |by| &by.key);
    builder
        .sign(signer, MessageDigest::sha256())
        .expect("a signature");
    Signed {
        certificate: builder.build(),
        key,
    }
}

/// A target with TLS, its CA and a client certificate.
struct Secured {
    target: Target,
    ca: Signed,
    client: Signed,
    _directory: tempfile::TempDir,
    ca_file: PathBuf,
}

impl Secured {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let ca = sign("an authority", 3, None, true);
        let server = sign("localhost", 3, Some(&ca), false);
        let client = sign("a client", 3, Some(&ca), false);
        let ca_file = directory.path().join("ca");
        let (certificate, key) = files(directory.path(), "server", &server);
        std::fs::write(&ca_file, ca.certificate.to_pem().expect("PEM")).expect("a file");
        let tls = [&certificate, &key, &ca_file].map(|path| path.display().to_string());
        let target = Target::spawn(&Options::default().args(["--tls".to_owned(), tls.join(":")]));
        let secured = Self {
            target,
            ca,
            client,
            _directory: directory,
            ca_file,
        };
        eventually(
            "a TLS client gets a response",
            Duration::from_secs(30),
            async || {
                secured
                    .request(&[&secured.client.certificate], &secured.client.key)
                    .await
                    .ok()
            },
        )
        .await;
        secured
    }

    /// Sends a request over TLS with this client certificate chain; returns the status line.
    async fn request(&self, chain: &[&X509], key: &PKey<Private>) -> Result<String, String> {
        let der = |certificate: &X509| CertificateDer::from(certificate.to_der().expect("DER"));
        let mut roots = RootCertStore::empty();
        roots.add(der(&self.ca.certificate)).expect("an authority");
        let chain = chain.iter().map(|certificate| der(certificate)).collect();
        let key = key.private_key_to_pkcs8().expect("a key");
        let key = PrivateKeyDer::try_from(key).map_err(str::to_owned)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| error.to_string())?;
        let exchange = async {
            let stream = TcpStream::connect(self.target.http).await?;
            let name = ServerName::try_from("localhost").expect("a name");
            let mut stream = TlsConnector::from(Arc::new(config))
                .connect(name, stream)
                .await?;
            let request =
                b"GET /v1/nullVolumes HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await?;
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        exchange.await.map_err(|error| error.to_string())
    }
}

fn files(directory: &Path, name: &str, signed: &Signed) -> (PathBuf, PathBuf) {
    let write = |what: &str, bytes: Vec<u8>| {
        let path = directory.join(format!("{name}.{what}"));
        std::fs::write(&path, bytes).expect("a file");
        keep_private(&path);
        path
    };
    (
        write("crt", signed.certificate.to_pem().expect("PEM")),
        write("key", signed.key.private_key_to_pem_pkcs8().expect("PEM")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_client_certificate_chain_is_rejected_before_verification() {
    let secured = Secured::start().await;
    // Same subject, different keys: each may be the issuer of each, so that path building is expensive.
    let authorities: Vec<Signed> = (0..84).map(|_| sign("x", 3, None, true)).collect();
    let stranger = sign("stranger", 3, Some(&authorities[83]), false);
    let mut chain = vec![&stranger.certificate];
    chain.extend(authorities.iter().map(|authority| &authority.certificate));
    for _ in 0..24 {
        let refused = secured.request(&chain, &stranger.key).await;
        refused.expect_err("the client's CA is unknown");
        let begun = Instant::now();
        let friend = secured
            .request(&[&secured.client.certificate], &secured.client.key)
            .await;
        assert_eq!(friend.as_deref(), Ok("HTTP/1.1 200 OK"));
        assert!(begun.elapsed() < ANSWER, "{:?}", begun.elapsed());
    }
    let log = secured.target.log();
    assert!(log.contains("has 84 certificates above its own"), "{log}");
    let told = log.matches("TLS handshake failed").count();
    assert!(
        (1..12).contains(&told),
        "{told} lines for 24 handshakes:\n{log}"
    );
    secured.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_x509_v1_client_certificate_is_rejected_with_the_reason_logged() {
    let secured = Secured::start().await;
    let old = sign("an old client", 1, Some(&secured.ca), false);
    let directory = tempfile::tempdir().expect("a directory");
    let (certificate, key) = files(directory.path(), "old", &old);
    for _ in 0..10 {
        let curl = Tool::at("curl".into())
            .args(["--silent", "--show-error", "--fail", "--cacert"])
            .arg(&secured.ca_file)
            .arg("--cert")
            .arg(&certificate)
            .arg("--key")
            .arg(&key);
        let port = secured.target.http.port();
        let curl = curl.arg(format!("https://localhost:{port}/v1/nullVolumes"));
        curl.run().await.expect_err("the certificate is rejected");
    }
    let log = secured.target.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("X.509 version"))
        .collect();
    assert!((1..=3).contains(&lines.len()), "{log}");
    assert!(lines[0].contains("peer=127.0.0.1:"), "{log}");
    secured.target.stop();
}
