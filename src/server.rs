//! The servers: gRPC with the API's services, reflection and health, the HTTP/JSON
//! gateway to the same services, and the proxy to SPDK's JSON-RPC where it is on.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::api;
use crate::config::TlsFiles;
use crate::gateway;
use crate::preflight::Listeners;
use crate::services::Services;
use crate::shutdown::Stopping;
use crate::spdk_rpc::{self, Proxy};

/// How long a connection may be silent before it is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Calls that one connection may have under way.
const STREAMS_PER_CONNECTION: u32 = 1024;

/// Serves until `stopping`, then lets calls in flight finish. A server that fails
/// ends the others. An error is one line for the operator.
pub async fn serve(
    listeners: Listeners,
    services: Services,
    stopping: Stopping,
) -> Result<(), String> {
    let Listeners {
        grpc,
        http,
        spdk_rpc,
        tls,
    } = listeners;
    let routes = with_reflection(services.routes().await)?.prepare();
    let http = serve_http(http, tls.as_ref(), routes.clone(), stopping.clone());
    let grpc = serve_grpc(grpc, tls.as_ref(), routes, stopping.clone());
    let spdk_rpc = serve_spdk_rpc(spdk_rpc, tls.as_ref(), stopping);
    tokio::try_join!(grpc, http, spdk_rpc).map(|_| ())
}

async fn serve_grpc(
    listener: TcpListener,
    tls: Option<&Tls>,
    routes: Routes,
    stopping: Stopping,
) -> Result<(), String> {
    let fail = |error: &dyn std::fmt::Display| format!("gRPC server: {error}");
    let (listener, address) = listen(listener).map_err(|error| fail(&error))?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    if let Some(tls) = tls {
        server = server
            .tls_config(tls.for_grpc())
            .map_err(|error| fail(&error))?;
    }
    tracing::info!(%address, "gRPC is served");
    server
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stopping.wait())
        .await
        .map_err(|error| fail(&error))
}

async fn serve_http(
    listener: TcpListener,
    tls: Option<&Tls>,
    routes: Routes,
    stopping: Stopping,
) -> Result<(), String> {
    let fail = |error: &dyn std::fmt::Display| format!("HTTP server: {error}");
    let (listener, address) = listen(listener).map_err(|error| fail(&error))?;
    let limits = gateway::Limits::default();
    let router = gateway::router(api::pool(), routes, limits.clone()).map_err(|e| fail(&e))?;
    let tls = tls
        .map(Tls::for_http)
        .transpose()
        .map_err(|error| fail(&error))?;
    tracing::info!(%address, "HTTP is served");
    gateway::serve(listener, router, tls, limits, stopping.wait()).await;
    Ok(())
}

async fn serve_spdk_rpc(
    proxy: Option<Proxy>,
    tls: Option<&Tls>,
    stopping: Stopping,
) -> Result<(), String> {
    let Some(Proxy {
        listener,
        credentials,
        socket,
    }) = proxy
    else {
        return Ok(());
    };
    let fail = |error: &dyn std::fmt::Display| format!("spdk-rpc-http server: {error}");
    let (listener, address) = listen(listener).map_err(|error| fail(&error))?;
    let limits = spdk_rpc::limits();
    let router = spdk_rpc::router(credentials, socket, limits.clone());
    let tls = tls
        .map(Tls::for_http)
        .transpose()
        .map_err(|error| fail(&error))?;
    tracing::info!(%address, "SPDK's JSON-RPC is served over HTTP");
    gateway::serve(listener, router, tls, limits, stopping.wait()).await;
    Ok(())
}

fn listen(listener: TcpListener) -> std::io::Result<(tokio::net::TcpListener, SocketAddr)> {
    let address = listener.local_addr()?;
    Ok((tokio::net::TcpListener::from_std(listener)?, address))
}

/// Reflection in both of its versions: clients in use speak either.
fn with_reflection(routes: Routes) -> Result<Routes, String> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(api::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let fail = |error: tonic_reflection::server::Error| format!("reflection: {error}");
    Ok(routes
        .add_service(builder().build_v1().map_err(fail)?)
        .add_service(builder().build_v1alpha().map_err(fail)?))
}

/// The contents of the TLS files: all servers use the same.
pub struct Tls {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

impl Tls {
    /// Reads the files and sees that they can be used.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn read(files: &TlsFiles) -> Result<Self, String> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("tls file {}: {error}", path.display()))
        };
        let tls = Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: read(&files.client_ca)?,
        };
        tls.for_http().map_err(|reason| format!("tls: {reason}"))?;
        let grpc = Server::builder().tls_config(tls.for_grpc());
        grpc.map_err(|error| format!("tls: {error}"))?;
        Ok(tls)
    }

    fn for_grpc(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(Identity::from_pem(&self.certificate, &self.key))
            .client_ca_root(Certificate::from_pem(&self.client_ca))
    }

    fn for_http(&self) -> Result<TlsAcceptor, String> {
        gateway::tls(&self.certificate, &self.key, &self.client_ca)
    }
}
