//! The gRPC server: the API's services, reflection and health, on one port.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::api;
use crate::config::{Config, TlsFiles};
use crate::preflight::Ready;
use crate::services::Services;
use crate::shutdown::Stopping;

/// How long a connection may be silent before it is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Calls that one connection may have under way.
const STREAMS_PER_CONNECTION: u32 = 1024;

/// Serves until `stopping`, then lets calls in flight finish. An error is one
/// line for the operator.
pub async fn serve(
    config: Config,
    ready: Ready,
    services: Services,
    stopping: Stopping,
) -> Result<(), String> {
    let Ready { grpc, http, instance: _instance, .. } = ready;
    drop(http);
    let tls = config.tls.as_ref().map(tls_config).transpose()?;
    let routes = with_reflection(services.routes().await)?;
    serve_grpc(grpc, tls, routes, stopping).await
}

async fn serve_grpc(
    listener: TcpListener,
    tls: Option<ServerTlsConfig>,
    routes: Routes,
    stopping: Stopping,
) -> Result<(), String> {
    let fail = |error: &dyn std::fmt::Display| format!("gRPC server: {error}");
    let address = listener.local_addr().map_err(|error| fail(&error))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| fail(&error))?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    if let Some(tls) = tls {
        server = server.tls_config(tls).map_err(|error| fail(&error))?;
    }
    tracing::info!(%address, "gRPC is served");
    server
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stopping.wait())
        .await
        .map_err(|error| fail(&error))
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

fn tls_config(files: &TlsFiles) -> Result<ServerTlsConfig, String> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("tls file {}: {error}", path.display()))
    };
    let identity = Identity::from_pem(read(&files.certificate)?, read(&files.key)?);
    let client_ca = Certificate::from_pem(read(&files.client_ca)?);
    Ok(ServerTlsConfig::new()
        .identity(identity)
        .client_ca_root(client_ca))
}
