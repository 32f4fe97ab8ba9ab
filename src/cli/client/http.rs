//! HTTP client for the server's metrics, which gRPC does not offer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::connection::{Token, reachable};
use super::failure::plain;
use super::{Connect, Failure};

/// Default address of the server's HTTP.
const DEFAULT: &str = "127.0.0.1:8082";

/// Maximum size of an answer, in bytes: 10,240 volumes have 40 MiB of metrics.
const ANSWER_MAX: usize = 64 << 20;

/// Timeout of a request.
const LIMIT: Duration = Duration::from_secs(5);

/// Address of the server's HTTP.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Http {
    /// Address and port of the server's HTTP [default: 127.0.0.1:8082]
    #[arg(long, value_name = "HOST:PORT")]
    http_addr: Option<String>,
}

/// Reads a server's metrics. Each request has its own connection, since the server may restart in between.
pub(super) struct Scraper {
    address: String,
    token: Token,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Http {
    /// Builds the scraper; the TLS identity is that of `connect`.
    ///
    /// # Errors
    /// A setting that is wrong.
    pub fn scraper(&self, connect: &Connect) -> Result<Scraper, Failure> {
        let address = reachable(self.http_addr.clone(), DEFAULT);
        let bad = || Failure::Usage(format!("--http-addr {address:?} is no HOST:PORT"));
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        port.parse::<u16>().map_err(|_| bad())?;
        let tls = match connect.tls_files()? {
            None => None,
            Some(files) => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let name = connect.server_name().unwrap_or(host).to_owned();
                let name = ServerName::try_from(name).map_err(|_| bad())?;
                Some((connector(&files).map_err(Failure::Here)?, name))
            }
        };
        let token = connect.token()?;
        Ok(Scraper {
            address,
            token,
            tls,
        })
    }
}

fn connector([certificate, key, ca]: &[PathBuf; 3]) -> Result<TlsConnector, String> {
    let fail = |file: &Path, error: &dyn std::fmt::Display| {
        format!("tls file {}: {error}", file.display())
    };
    let certificates = |file: &Path| {
        let read = CertificateDer::pem_file_iter(file).map_err(|error| fail(file, &error))?;
        read.collect::<Result<Vec<_>, _>>()
            .map_err(|error| fail(file, &error))
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| fail(ca, &error))?;
    }
    let key_of = PrivateKeyDer::from_pem_file(key).map_err(|error| fail(key, &error))?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("tls: {error}"))?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(certificate)?, key_of)
        .map_err(|error| format!("tls: {error}"))?;
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Scraper {
    /// The server's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Reads the metrics, in the Prometheus text format.
    ///
    /// # Errors
    /// The reason, for the user.
    pub async fn metrics(&self) -> Result<String, String> {
        let read = tokio::time::timeout(LIMIT, self.read());
        let read = read
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
        read.map_err(|reason| plain(&format!("{}: {reason}", self.address)))
    }

    async fn read(&self) -> Result<String, String> {
        let fail = |error: std::io::Error| error.to_string();
        let stream = TcpStream::connect(&self.address).await.map_err(fail)?;
        match &self.tls {
            None => self.ask(stream).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                self.ask(stream.map_err(fail)?).await
            }
        }
    }

    async fn ask<S>(&self, stream: S) -> Result<String, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let text = |error: &dyn std::error::Error| error.to_string();
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| text(&error))?;
        let request = Request::get("/metrics")
            .header(header::HOST, &self.address)
            .header(header::ACCEPT, "text/plain")
            .body(Body::empty());
        let mut request = request.map_err(|error| text(&error))?;
        if let Some(value) = self.token.header() {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let answered = async {
            let answer = sender.send_request(request).await;
            body(answer.map_err(|error| text(&error))?).await
        };
        // The connection has to be polled for the request to proceed. A server that closes it after its answer ends it
        // before the answer is read here.
        let broken = async {
            match connection.await {
                Err(error) => text(&error),
                Ok(()) => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = answered => answer,
            error = broken => Err(error),
        }
    }
}

async fn body(answer: axum::http::Response<Incoming>) -> Result<String, String> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    if !status.is_success() {
        return Err(format!("GET /metrics: {status}"));
    }
    String::from_utf8(body.into()).map_err(|_| "metrics that are no text".to_owned())
}
