//! TLS of all ports: the server's identity, the authorities of clients, and handshakes on threads of
//! their own, since verifying what a stranger sends costs milliseconds.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::process::setpriority_process;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::server::TlsStream;

use super::limits::{CHAIN, CHAIN_BYTES, HANDSHAKE, HANDSHAKE_NICE, HANDSHAKE_THREADS};
use crate::config::TlsFiles;

/// Who the server is, and who signs its clients' certificates. All ports use the same.
/// Connections that are open keep the identity that they began with.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// Reads the files and checks that they can be used.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn read(files: &TlsFiles) -> Result<Self, String> {
        let read = |what: &str, path: &Path| {
            std::fs::read(path)
                .map_err(|error| format!("tls: {what} file {}: {error}", path.display()))
        };
        let certificate = read("certificate", &files.certificate)?;
        let key = read("key", &files.key)?;
        let client_ca = read("client CA", &files.client_ca)?;
        Self::from_pem(&certificate, &key, &client_ca).map_err(|reason| {
            format!(
                "tls: {reason} (certificate {}, key {}, client CA {}, in this order)",
                files.certificate.display(),
                files.key.display(),
                files.client_ca.display()
            )
        })
    }

    /// Reads the files for the connections to come. If they cannot be used, all stays as it was.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn reload(&self, files: &TlsFiles) -> Result<(), String> {
        let new = Self::read(files)?.current();
        *self.0.write() = new;
        Ok(())
    }

    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read())
    }

    /// The same from PEM: the server's certificates and key, and the authorities that clients'
    /// certificates must come from. Clients without one are refused.
    ///
    /// # Errors
    /// Says which of the three is bad.
    pub fn from_pem(certificates: &[u8], key: &[u8], client_ca: &[u8]) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates_in(client_ca, "client CA")? {
            roots
                .add(certificate)
                .map_err(|error| format!("client CA: {error}"))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| format!("client CA: {error}"))?;
        let key = private_key(key)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS versions: {error}"))?
            .with_client_cert_verifier(Arc::new(ShortChains(verifier)))
            .with_single_cert(certificates_in(certificates, "certificate")?, key)
            .map_err(|error| format!("certificate and key: {error}"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Arc::new(RwLock::new(Arc::new(config)))))
    }
}

/// The certificates in a PEM text; at least one.
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

/// The private key in a PEM text.
fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => match CertificateDer::from_pem_slice(text) {
            Ok(_) => "key: there is no private key in it, but a certificate".to_owned(),
            Err(_) => "key: there is no private key in it".to_owned(),
        },
        other => format!("key: {other}"),
    })
}

/// Refuses long chains before path building, which tries every order of certificates with one name.
#[derive(Debug)]
struct ShortChains(Arc<dyn ClientCertVerifier>);

/// Whether a chain is short enough to be looked at.
fn check_length(
    end_entity: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
) -> Result<(), String> {
    let bytes: usize = end_entity.len()
        + above
            .iter()
            .map(|certificate| certificate.len())
            .sum::<usize>();
    if above.len() > CHAIN || bytes > CHAIN_BYTES {
        return Err(format!(
            "the client's chain has {} certificates above its own and {bytes} bytes: at most {CHAIN} \
             and {CHAIN_BYTES}",
            above.len()
        ));
    }
    Ok(())
}

/// Verification's own word for this fault is one that only its authors know.
fn readable(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("UnsupportedCertVersion") =>
        {
            let what =
                "the client's certificate, or one above it, has X.509 version 1 or 2: 3 is needed";
            Error::General(what.to_owned())
        }
        other => other,
    }
}

impl ClientCertVerifier for ShortChains {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_length(end_entity, intermediates).map_err(Error::General)?;
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        verified.map_err(readable)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Threads that do handshakes. A stream belongs to the runtime that accepted it, wherever it is polled.
pub struct Handshakes(Option<Runtime>);

impl Handshakes {
    /// Starts them.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(HANDSHAKE_THREADS)
            .max_blocking_threads(1)
            .thread_name("tls-handshake")
            .on_thread_start(|| {
                // In Linux of the calling thread alone. Without it they are just not so polite.
                if let Err(error) = setpriority_process(None, HANDSHAKE_NICE) {
                    tracing::debug!(%error, "niceness of a handshake thread");
                }
            })
            .enable_time()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Does one.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn accept(
        &self,
        tls: &Tls,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let Some(runtime) = &self.0 else {
            return Err("handshakes have ended".to_owned());
        };
        let accept = TlsAcceptor::from(tls.current()).accept(stream);
        let task = runtime.spawn(async move { timeout(HANDSHAKE, accept).await });
        // A connection that is given up takes its handshake with it.
        let mut task = AbortOnDrop(task);
        match (&mut task.0).await {
            Ok(Ok(Ok(stream))) => Ok(stream),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(_)) => Err(format!("it was not complete within {HANDSHAKE:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_bounded_in_number_and_bytes() {
        let of = |bytes: usize| CertificateDer::from(vec![0; bytes]);
        assert_eq!(check_length(&of(1000), &vec![of(1000); CHAIN]), Ok(()));
        let long = check_length(&of(1000), &vec![of(1000); CHAIN + 1]);
        assert!(long.unwrap_err().contains("has 5 certificates"));
        assert!(check_length(&of(CHAIN_BYTES + 1), &[]).is_err());
    }
}
