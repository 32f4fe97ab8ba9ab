//! The HTTP server under the gateway: connections, their limits, TLS, and the end.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tower::ServiceExt;

use super::Limits;
use super::silence::Bounded;

/// How long a client may take for its first byte, for a TLS handshake, and for the headers of a
/// request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Calls that one HTTP/2 connection may have under way.
const STREAMS_PER_CONNECTION: u32 = 256;

/// How long to wait when a connection cannot be accepted: the system is out of file descriptors or
/// memory, and only time brings them back.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves HTTP/1.1 and HTTP/2 until `stopping`; then accepts no more, lets requests in flight finish,
/// and returns. How long that may take is for the caller to bound.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    stopping: impl Future<Output = ()>,
) {
    let mut stopping = pin!(stopping);
    let places = Arc::new(Semaphore::new(limits.connections));
    let builder = builder(&limits);
    // A call that takes as long as it may moves nothing in the meantime.
    let silence = limits.request + PATIENCE;
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            (place, accepted) = accepted => match accepted {
                Ok((stream, _)) => (place, stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection");
                    sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            },
            () = &mut stopping => break,
        };
        let (builder, router, tls) = (builder.clone(), router.clone(), tls.clone());
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            connection(stream, silence, &builder, router, tls, watcher).await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        // A client that has said all that it will say still waits for its answer.
        .half_close(true)
        .max_buf_size(limits.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(PATIENCE))
        .max_header_list_size(u32::try_from(limits.headers).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    builder
}

async fn connection(
    stream: TcpStream,
    silence: Duration,
    builder: &Builder<TokioExecutor>,
    router: Router,
    tls: Option<TlsAcceptor>,
    watcher: Watcher,
) {
    let info = stream.connect_info();
    // Answers are small and written whole: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let Some(tls) = tls else {
        let stream = Bounded::new(stream, PATIENCE, silence);
        return requests(stream, builder, router, info, watcher).await;
    };
    match timeout(PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            requests(
                Bounded::new(stream, PATIENCE, silence),
                builder,
                router,
                info,
                watcher,
            )
            .await
        }
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

async fn requests<S>(
    stream: S,
    builder: &Builder<TokioExecutor>,
    router: Router,
    info: TcpConnectInfo,
    watcher: Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        // As tonic does it, so that a service sees who calls.
        request.extensions_mut().insert(info.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(never)) }
    });
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(error, "HTTP connection ended");
    }
}

fn never<T>(error: Infallible) -> T {
    match error {}
}

/// TLS for [`serve`], from PEM: the server's certificates and key, and the authorities that clients'
/// certificates must come from. Clients without one are refused.
///
/// # Errors
/// Says which of the three is bad.
pub fn tls(certificates: &[u8], key: &[u8], client_ca: &[u8]) -> Result<TlsAcceptor, String> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in pem(client_ca, "client CA")? {
        roots
            .add(certificate)
            .map_err(|error| format!("client CA: {error}"))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| format!("client CA: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("key: {error}"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS versions: {error}"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(pem(certificates, "certificate")?, key)
        .map_err(|error| format!("certificate and key: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The certificates in a PEM text; one at least.
fn pem(text: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{what}: {error}"))?;
    if found.is_empty() {
        return Err(format!("{what}: there is no certificate in it"));
    }
    Ok(found)
}
