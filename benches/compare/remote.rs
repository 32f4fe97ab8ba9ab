//! The remote target, to which both targets have their paths: an spdk_tgt that exports a malloc volume over NVMe/TCP.
//!
//! On two cores it shares one with the initiator, which polls. So it does not poll itself (`--interrupt-mode`).

use anyhow::{Context, Result};
use serde_json::json;

use crate::scenario::BLOCK_SIZE;
use crate::settings::Settings;
use crate::spdk_tgt::SpdkTgt;
use crate::target::free_port;

/// NQN of its subsystem.
pub const NQN: &str = "nqn.2016-06.io.spdk:bench-remote";

/// Addresses of its port, one for each path.
const ADDRESSES: [&str; 2] = ["127.0.0.1", "127.0.0.2"];

/// The addresses of this many paths.
pub fn addresses(paths: u8) -> impl Iterator<Item = &'static str> {
    ADDRESSES.into_iter().take(paths.into())
}

pub struct Remote {
    tgt: SpdkTgt,
    pub port: u16,
}

impl Remote {
    /// Starts it, without hugepages, and exports a volume on all addresses.
    pub async fn start(settings: &Settings) -> Result<Self> {
        let core = &settings.cores.remote;
        let mut tgt =
            SpdkTgt::start_so(settings, "remote", core, core, true, &["--interrupt-mode"])
                .await
                .context("remote target")?;
        let port = free_port()?;
        let bdev = json!({
            "name": "bench", "num_blocks": settings.volume_blocks(), "block_size": BLOCK_SIZE,
        });
        let subsystem = json!({"nqn": NQN, "allow_any_host": true});
        let namespace = json!({"nqn": NQN, "namespace": {"bdev_name": "bench"}});
        for (method, parameters) in [
            ("bdev_malloc_create", bdev),
            ("nvmf_create_transport", json!({"trtype": "TCP"})),
            ("nvmf_create_subsystem", subsystem),
            ("nvmf_subsystem_add_ns", namespace),
        ] {
            tgt.rpc.call(method, parameters).await?;
        }
        for address in ADDRESSES {
            let address = json!({
                "trtype": "TCP", "adrfam": "IPv4", "traddr": address, "trsvcid": port.to_string(),
            });
            let parameters = json!({"nqn": NQN, "listen_address": address});
            tgt.rpc
                .call("nvmf_subsystem_add_listener", parameters)
                .await?;
        }
        Ok(Self { tgt, port })
    }

    pub async fn stop(self) -> Result<()> {
        self.tgt.stop().await
    }
}
