//! A gateway on its own port, and raw HTTP requests to it.

use std::net::SocketAddr;

use opi_spdk::access::Access;
use opi_spdk::api;
use opi_spdk::api::inventory::inventory_service_server::InventoryServiceServer;
use opi_spdk::config::Web;
use opi_spdk::gateway::{self, Limits};
use opi_spdk::inventory::InventoryService;
use opi_spdk::server::{Guard, Listener, Port, Protocol, Service, Shared, Tls};
use opi_spdk::shutdown::{self, Trigger};
use opi_spdk::telemetry::Telemetry;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::service::Routes;

pub const INVENTORY: &str = "/v1/inventory/1/inventory/2";

pub fn routes() -> Routes {
    Routes::new(InventoryServiceServer::new(InventoryService::default()))
}

pub fn router(limits: Limits) -> axum::Router {
    gateway::router(api::pool(), routes(), limits).unwrap()
}

/// A gateway on a free port; runs until it is stopped.
pub struct Served {
    pub address: SocketAddr,
    pub stop: Trigger,
    pub server: JoinHandle<()>,
}

impl Served {
    pub async fn start(limits: Limits, tls: Option<Tls>) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = shutdown::trigger();
        let shared =
            Shared::new(limits.clone(), tls, Access::default(), Telemetry::new(None)).unwrap();
        let guard = Guard::new(Web::default(), shared.has_tls());
        let service = Service::new(Protocol::Http, router(limits), guard);
        let server =
            tokio::spawn(Port::new(&shared, service).serve(Listener::Tcp(listener), stopping));
        Served {
            address,
            stop,
            server,
        }
    }

    pub async fn exchange(&self, request: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        exchange(stream, request).await
    }
}

/// Sends a request with `connection: close`; returns status and body.
pub async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> (u16, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that rejects a request may close before it has read the whole request.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}
