//! The management server: gRPC with the API, reflection and health; the HTTP/JSON gateway to the same services; and
//! the optional proxy to SPDK's JSON-RPC. One server has all ports, so that its limits hold for the process.

mod accept;
mod admission;
mod calls;
mod gathered;
mod held;
mod idle_timeout;
pub mod limits;
mod listener;
mod origin;
mod rate_limit;
mod service;
mod tls;

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::{Router, middleware};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tonic::service::Routes;
use tower::ServiceBuilder;

use crate::access::{Access, Restricted};
use crate::api;
use crate::config::Web;
use crate::gateway;
use crate::local_socket::Bound;
use crate::objects;
use crate::page;
use crate::services::Services;
use crate::shutdown::Stopping;
use crate::spdk_rpc::{self, Proxy};
use crate::telemetry::metrics::Scrapes;
use crate::telemetry::{self, Observe, Telemetry, watchdog};

pub use accept::{Port, Shared};
pub use admission::Peer;
pub use limits::Limits;
pub use listener::{Address, Listener};
pub use origin::Guard;
pub use rate_limit::{LibraryLines, RateLimit};
pub use service::{Caller, Protocol, Service};
pub use tls::{CRL, Expiry, Stamps, Tls};

/// Resources of the servers.
pub struct Listeners {
    /// Bound, but not served yet.
    pub grpc: TcpListener,
    /// Bound, but not served yet.
    pub http: TcpListener,
    /// The Unix socket for gRPC, if enabled; bound, but not served yet.
    pub local: Option<Bound>,
    /// The proxy to SPDK's JSON-RPC, if enabled.
    pub spdk_rpc: Option<Proxy>,
    /// TLS of all ports, if enabled.
    pub tls: Option<Tls>,
    /// Access control of their clients.
    pub access: Access,
}

/// Serves until `stopping`, then drains calls in flight. The failure of one port ends the others.
///
/// # Errors
/// One line for the operator.
pub async fn serve(
    listeners: Listeners,
    services: Services,
    web: Web,
    connections: usize,
    telemetry: Arc<Telemetry>,
    stopping: Stopping,
) -> Result<(), String> {
    let Listeners {
        grpc,
        http,
        local,
        spdk_rpc,
        tls,
        access,
    } = listeners;
    let limits = Limits {
        connections: within_file_limit(connections),
        ..Limits::default()
    };
    if let Some(tls) = &tls {
        telemetry.metrics.show_certificates(tls);
    }
    let shared = Shared::new(limits.clone(), tls, access.clone(), Arc::clone(&telemetry))?;
    let (spdk, scrapes) = (
        services.spdk().clone(),
        Scrapes::new(services.clone(), &telemetry),
    );
    let (events, objects) = (Arc::clone(services.events()), services.objects());
    let (routes, health) = services.routes(Arc::clone(&objects)).await;
    let health_of_all = Arc::clone(&health);
    let watchdog = watchdog::watch(spdk, telemetry, health_of_all, events, stopping.clone());
    tokio::spawn(watchdog);
    let routes = with_reflection(routes)?.prepare();
    let fail = |error: String| format!("HTTP server: {error}");
    let observed = Observe(Restricted::new(routes, access.clone()));
    let gateway = gateway::router(api::pool(), observed.clone(), limits).map_err(fail)?;
    let readers = middleware::from_fn_with_state(access, Access::readers);
    let of_all = telemetry::http::metrics(scrapes).merge(objects::router(objects));
    let gateway = gateway
        .merge(of_all.layer(readers))
        .merge(telemetry::http::health(health))
        .merge(page::router());
    let serve_on = async |protocol, what: &(dyn Display + Sync), listener, router| {
        let guard = Guard::new(web.clone(), shared.has_tls());
        let service = Service::new(protocol, router, guard);
        let port = Port::new(&shared, service);
        tracing::info!(address = %what, "{} is served", name(protocol));
        port.serve(listener, stopping.clone()).await;
    };
    let serve = async |protocol, listener, router| {
        let (what, listener) = listen(protocol, listener)?;
        serve_on(protocol, &what, listener, router).await;
        Ok::<_, String>(())
    };
    let local = async |router| {
        let Some((listener, file)) = local.map(Bound::split) else {
            return Ok(());
        };
        let listener = UnixListener::from_std(listener);
        let listener = listener.map_err(|error| format!("gRPC server: {error}"))?;
        let what = file.path().display();
        serve_on(Protocol::Grpc, &what, Listener::Local(listener), router).await;
        Ok(())
    };
    let grpc_routes = grpc_router(observed);
    let local = local(grpc_routes.clone());
    let grpc = serve(Protocol::Grpc, grpc, grpc_routes);
    let http = serve(Protocol::Http, http, gateway);
    let rpc = async {
        let Some(Proxy {
            listener,
            credentials,
            socket,
        }) = spdk_rpc
        else {
            return Ok(());
        };
        let router = spdk_rpc::router(credentials, socket);
        serve(Protocol::Rpc, listener, router).await
    };
    tokio::try_join!(grpc, local, http, rpc).map(|_| ())
}

/// Wraps the gRPC services as an axum router.
fn grpc_router(services: Observe<Restricted<Routes>>) -> Router {
    use axum::body::Body;
    use axum::http::{Request, Response};
    let services = ServiceBuilder::new()
        .map_request(|request: Request<Body>| request.map(tonic::body::Body::new))
        .map_response(|response: Response<tonic::body::Body>| response.map(Body::new))
        .service(services);
    Router::new().fallback_service(services)
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Grpc => "gRPC",
        Protocol::Http => "HTTP",
        Protocol::Rpc => "SPDK's JSON-RPC over HTTP",
    }
}

fn listen(protocol: Protocol, listener: TcpListener) -> Result<(SocketAddr, Listener), String> {
    let fail = |error: std::io::Error| format!("{} server: {error}", name(protocol));
    let address = listener.local_addr().map_err(fail)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(fail)?;
    Ok((address, Listener::Tcp(listener)))
}

/// The wanted number of connections, or fewer if the limit of file descriptors is lower: client connections must not
/// use up the data path's descriptors.
fn within_file_limit(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = u64::try_from(wanted + limits::OTHER_FILES).unwrap_or(u64::MAX);
    let current = match current {
        Some(current) if current < needed => {
            let raised = maximum.map_or(needed, |maximum| maximum.min(needed));
            let limit = Rlimit {
                current: Some(raised),
                maximum,
            };
            match setrlimit(Resource::Nofile, limit) {
                Ok(()) => raised,
                Err(_) => current,
            }
        }
        _ => return wanted,
    };
    let room = usize::try_from(current).unwrap_or(usize::MAX);
    let affordable = room.saturating_sub(limits::OTHER_FILES).clamp(1, wanted);
    if affordable < wanted {
        tracing::warn!(
            connections = affordable,
            wanted,
            files = current,
            "fewer connections: the limit of file descriptors (RLIMIT_NOFILE) is low"
        );
    }
    affordable
}

/// Adds both versions of reflection, since clients of either exist.
fn with_reflection(routes: Routes) -> Result<Routes, String> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(api::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The types of error details, so that clients can print them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let fail = |error: tonic_reflection::server::Error| format!("reflection: {error}");
    let v1 = builder().build_v1().map_err(fail)?;
    let v1alpha = builder().build_v1alpha().map_err(fail)?;
    Ok(routes
        .add_service(v1.max_decoding_message_size(limits::REFLECTION_MESSAGE))
        .add_service(v1alpha.max_decoding_message_size(limits::REFLECTION_MESSAGE)))
}
