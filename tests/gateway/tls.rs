//! TLS with client certificates (mTLS).

use std::sync::Arc;

use opi_spdk::config::TlsFiles;
use opi_spdk::gateway::Limits;
use opi_spdk::server::Tls;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::common::{Authority, keep_private};
use crate::served::{INVENTORY, Served, exchange, get};

/// Requests the inventory with a client certificate of this authority, or without one; returns the
/// status, or 0 if the handshake fails.
async fn ask(served: &Served, server: &Authority, client: Option<&Authority>) -> u16 {
    let mut roots = RootCertStore::empty();
    roots.add(server.der()).unwrap();
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
async fn clients_need_a_certificate_signed_by_the_authority() {
    let (ours, other) = (Authority::new(), Authority::new());
    let (certificate, key) = ours.sign("localhost");
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    let ca = ours.pem();
    let tls = |c: &str, k: &str, a: &str| Tls::from_pem(c.as_bytes(), k.as_bytes(), a.as_bytes());
    let acceptor = tls(&certificate, &key, &ca).unwrap();
    let served = Served::start(Limits::default(), Some(acceptor)).await;
    assert_eq!(ask(&served, &ours, Some(&ours)).await, 200);
    assert_eq!(ask(&served, &ours, None).await, 0);
    assert_eq!(ask(&served, &ours, Some(&other)).await, 0);
    assert_eq!(served.exchange(&get(INVENTORY)).await.0, 0, "no TLS");

    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        keep_private(&path);
        path
    };
    let (c, k, a) = (
        file("server.pem", &certificate),
        file("server.key", &key),
        file("ca.pem", &ca),
    );
    let none = dir.path().join("none");
    for (certificate, key, client_ca, what) in [
        (
            &k,
            &c,
            &a,
            "key: there is no private key in it, but a certificate",
        ),
        (
            &k,
            &k,
            &a,
            "certificate: there is no certificate in it, but a private key",
        ),
        (
            &c,
            &a,
            &k,
            "client CA: there is no certificate in it, but a private key",
        ),
        (&c, &none, &a, "key file"),
    ] {
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
            crl: None,
        };
        let error = Tls::read(&files).err().unwrap();
        assert!(error.starts_with(&format!("tls: {what}")), "{error}");
        assert!(error.contains(&key.display().to_string()), "{error}");
        assert!(error.contains("in this order") || *key == none, "{error}");
    }
    std::fs::set_permissions(&k, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let files = TlsFiles {
        certificate: c,
        key: k,
        client_ca: a,
        crl: None,
    };
    let error = Tls::read(&files).err().unwrap();
    assert!(
        error.contains("mode 0644") && error.contains("chmod 600"),
        "{error}"
    );
    assert!(tls("", &key, &ca).err().unwrap().starts_with("certificate"));
    assert!(tls(&certificate, "", &ca).err().unwrap().starts_with("key"));
    assert!(
        tls(&certificate, &key, "x")
            .err()
            .unwrap()
            .starts_with("client CA")
    );
}
