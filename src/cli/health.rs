//! `opi-spdk health`: checks whether a running opi-spdk serves, as a container probe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::print;
use crate::config::{CommandLine, TlsFiles};

/// `opi-spdk health`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 if it serves, 1 if not. Takes all settings, as they are given to opi-spdk, \
                        and so finds its address and TLS."
)]
pub struct Args {
    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
    /// The name in the server's certificate
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    server_name: String,
    #[command(flatten)]
    settings: CommandLine,
}

/// Runs the subcommand. With TLS the client presents the server's own certificate, so the server's client CA must have
/// signed it.
///
/// # Errors
/// Why the server does not serve or did not answer.
pub fn run(args: Args) -> Result<ExitCode, String> {
    // A server that runs is healthy also where its cpuset has shrunk since.
    let (config, _) = args
        .settings
        .resolve_running()
        .map_err(|error| error.to_string())?;
    let address = reachable(config.grpc_addr);
    let limit = Duration::from_secs(args.timeout);
    let endpoint = endpoint(address, config.tls.as_ref(), args.server_name)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let asked = runtime.block_on(async { tokio::time::timeout(limit, ask(&endpoint)).await });
    match asked {
        Err(_) => Err(format!("{address} did not answer within {limit:?}")),
        Ok(Err(reason)) => Err(format!("{address}: {reason}")),
        Ok(Ok(ServingStatus::Serving)) => print("serving\n").map(|()| ExitCode::SUCCESS),
        Ok(Ok(other)) => Err(format!("{address} answers {}", other.as_str_name())),
    }
}

fn endpoint(
    address: SocketAddr,
    tls: Option<&TlsFiles>,
    server_name: String,
) -> Result<Endpoint, String> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Channel::from_shared(format!("{scheme}://{address}"))
        .map_err(|error| format!("{address}: {error}"))?;
    let Some(files) = tls else {
        return Ok(endpoint);
    };
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("tls file {}: {error}", path.display()))
    };
    let identity = Identity::from_pem(read(&files.certificate)?, read(&files.key)?);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(&files.client_ca)?))
        .identity(identity)
        .domain_name(server_name);
    endpoint
        .tls_config(tls)
        .map_err(|error| format!("tls: {error}"))
}

async fn ask(endpoint: &Endpoint) -> Result<ServingStatus, String> {
    let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await
        .map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner().status())
}

/// Formats an error with its sources, since the outermost says only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text += &format!(": {inner}");
        source = inner.source();
    }
    text
}

/// The address to connect to, for a server that listens on the wildcard address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
