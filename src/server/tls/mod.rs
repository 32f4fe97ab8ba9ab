//! TLS of all ports: the server's identity, the client authorities, and the expiry of both.

mod clients;
mod files;
mod handshakes;

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::config::TlsFiles;
use clients::ShortChains;
use files::Texts;

pub use files::{CRL, Expiry, Stamps};
pub use handshakes::Handshakes;

/// The server's identity and its client authorities, shared by all ports. Open connections keep the identity they
/// began with.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<InForce>>);

struct InForce {
    config: Arc<ServerConfig>,
    expiries: Vec<Expiry>,
    stamps: Stamps,
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn read(files: &TlsFiles) -> Result<Self, String> {
        // Stamped before reading, so that a later write is seen as a change.
        let stamps = Stamps::of(files);
        let texts = Texts::read(files).map_err(|reason| format!("tls: {reason}"))?;
        let read = Self::from_texts(&texts).map_err(|reason| {
            format!(
                "tls: {reason} (certificate {}, key {}, client CA {}, in this order)",
                files.certificate.display(),
                files.key.display(),
                files.client_ca.display()
            )
        })?;
        read.0.write().stamps = stamps;
        Ok(read)
    }

    /// Reloads the files, for new connections. On failure the previous ones stay in use.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn reload(&self, files: &TlsFiles) -> Result<(), String> {
        self.replace(&Self::read(files)?);
        Ok(())
    }

    /// Replaces the certificates and keys by those of `new`, for new connections.
    pub fn replace(&self, new: &Self) {
        std::mem::swap(&mut *self.0.write(), &mut *new.0.write());
    }

    /// The stamps of the files in use.
    pub fn stamps(&self) -> Stamps {
        self.0.read().stamps.clone()
    }

    /// The expiry of each file's certificates.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.0.read().expiries.clone()
    }

    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().config)
    }

    /// Builds the configuration from PEM: the server's certificates and key, and the client authorities. Clients
    /// without a certificate are refused.
    ///
    /// # Errors
    /// Which of the three is bad.
    pub fn from_pem(certificates: &[u8], key: &[u8], client_ca: &[u8]) -> Result<Self, String> {
        Self::from_texts(&Texts {
            certificates: certificates.to_vec(),
            key: key.to_vec().into(),
            client_ca: client_ca.to_vec(),
            revoked: None,
        })
    }

    fn from_texts(texts: &Texts) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let authorities = certificates_in(&texts.client_ca, "client CA")?;
        let key = private_key(&texts.key)?;
        let certificates = certificates_in(&texts.certificates, "certificate")?;
        let expiries = [("certificate", &certificates), ("client-ca", &authorities)];
        let expiries = expiries
            .into_iter()
            .filter_map(|(file, all)| Expiry::of(file, all));
        let revoked = texts.revoked.as_deref().map(revocations_in).transpose()?;
        let revoked = revoked.unwrap_or_default();
        let expiries = expiries.chain(revoked.iter().filter_map(Expiry::of_list));
        let expiries = expiries.collect();
        let mut roots = RootCertStore::empty();
        for certificate in authorities {
            roots
                .add(certificate)
                .map_err(|error| format!("client CA: {error}"))?;
        }
        // A list whose next update is overdue is still applied: refusing every client for it would also keep out those
        // who could replace it.
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .with_crls(revoked)
                .build()
                .map_err(|error| format!("client CA: {error}"))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS versions: {error}"))?
            .with_client_cert_verifier(Arc::new(ShortChains(verifier)))
            .with_single_cert(certificates, key)
            .map_err(|error| format!("certificate and key: {error}"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Arc::new(RwLock::new(InForce {
            config: Arc::new(config),
            expiries,
            stamps: Stamps::default(),
        }))))
    }
}

/// Parses the certificates of a PEM text; one or more.
fn certificates_in(text: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{what}: {error}"))?;
    if found.is_empty() {
        let instead = match PrivateKeyDer::from_pem_slice(text) {
            Ok(_) => ", but a private key",
            Err(_) => "",
        };
        return Err(format!("{what}: there is no certificate in it{instead}"));
    }
    Ok(found)
}

/// Parses the revocation lists of a PEM text; one or more.
fn revocations_in(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| format!("CRL: {error}"))?;
    match found.is_empty() {
        true => Err("CRL: there is no list of revoked certificates in it".to_owned()),
        false => Ok(found),
    }
}

/// Parses the private key of a PEM text.
fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => match CertificateDer::from_pem_slice(text) {
            Ok(_) => "key: there is no private key in it, but a certificate".to_owned(),
            Err(_) => "key: there is no private key in it".to_owned(),
        },
        other => format!("key: {other}"),
    })
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}
