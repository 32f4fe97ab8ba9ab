//! The NVMe/TCP discovery service at its own address, where a host asks what it may connect to. It also answers at the
//! addresses of all controllers; this address is known before any controller exists.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use spdk::Handle;
use spdk::nvmf::{Address, listener, nqn};

use crate::mdns::Announcement;

/// Interval of retries. Preflight has found the address free, so the first attempt usually succeeds.
const RETRY: Duration = Duration::from_secs(5);

/// Opens the service at `address`, retrying while the address is in use. Call it when everything it lists has been
/// restored. Returns when the service is open (and announced, if requested) or SPDK stops.
pub async fn open(spdk: Handle, address: SocketAddr, announced: Option<Arc<Announcement>>) {
    let mut last_reason = String::new();
    loop {
        let at = Address::Tcp {
            ip: address.ip(),
            port: address.port(),
        };
        let opened =
            spdk.call(async move |spdk| listener::add(spdk, nqn::DISCOVERY, &at, false).await);
        match opened.await {
            Ok(Ok(())) => {
                tracing::info!(%address, "discovery service is open");
                if let Some(announced) = announced {
                    // Blocking: reads the machine's network interfaces.
                    let _ = tokio::task::spawn_blocking(move || announced.begin(address)).await;
                }
                return;
            }
            Ok(Err(error)) => {
                let reason = error.to_string();
                if reason != last_reason {
                    tracing::error!(%address, reason, "discovery-addr cannot be opened, and is tried again");
                    last_reason = reason;
                }
            }
            Err(_) => return,
        }
        tokio::time::sleep(RETRY).await;
    }
}
