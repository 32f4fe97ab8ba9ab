//! SPDK's own JSON-RPC, for diagnosis: what this program does for it beside SPDK.
//!
//! ```text
//! rpc.py, spdk_top ─────────────────► unix socket ─► SPDK's server, on the app thread
//! HTTP client ─► POST / (password) ──────┘
//! ```
//!
//! What is made through it is in SPDK alone: clients of the API may refer to it by its raw
//! name, and no list of the API has it.

mod attempts;
mod credentials;
mod proxy;
mod socket;

use std::path::PathBuf;

pub use credentials::Credentials;
pub use proxy::router;

/// The HTTP proxy to SPDK's JSON-RPC, before it is served.
pub struct Proxy {
    /// Bound, not yet served.
    pub listener: std::net::TcpListener,
    /// Who may use it.
    pub credentials: Credentials,
    /// SPDK's server.
    pub socket: PathBuf,
}
