//! The discovery service at an address of its own: where a host asks what it may connect to. It answers
//! at the addresses of all controllers as well; this one is known before there is any.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use spdk::Handle;
use spdk::nvmf::{Address, listener, nqn};

use crate::mdns::Announcement;

/// Between two attempts. The start has found the address free, so that one is mostly enough.
const RETRY: Duration = Duration::from_secs(5);

/// Opens the service at `address`, to be called when all that it tells of has been tried; keeps trying
/// while the address is taken. Ends when it is open, and told of where that is asked for, or SPDK stops.
pub async fn open(spdk: Handle, address: SocketAddr, announced: Option<Arc<Announcement>>) {
    let mut told = String::new();
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
                    // It reads the machine's interfaces.
                    let _ = tokio::task::spawn_blocking(move || announced.begin(address)).await;
                }
                return;
            }
            Ok(Err(error)) => {
                let reason = error.to_string();
                if reason != told {
                    tracing::error!(%address, reason, "discovery-addr cannot be opened, and is tried again");
                    told = reason;
                }
            }
            Err(_) => return,
        }
        tokio::time::sleep(RETRY).await;
    }
}
