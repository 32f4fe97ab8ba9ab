//! SPDK's own JSON-RPC, for diagnosis: the HTTP proxy to it.
//!
//! ```text
//! rpc.py, spdk_top ─────────────────► unix socket ─► SPDK's server, on the app thread
//! HTTP client ─► POST / (password) ──────┘
//! ```
//!
//! Objects created through it exist in SPDK only: clients of the API may refer to them by their raw names, but no list
//! of the API contains them.

mod attempts;
mod credentials;
mod proxy;
mod socket;

use std::path::PathBuf;

pub use credentials::Credentials;
pub use proxy::router;

/// The HTTP proxy to SPDK's JSON-RPC, before it is served.
pub struct Proxy {
    /// Bound, but not served yet.
    pub listener: std::net::TcpListener,
    /// Its credentials.
    pub credentials: Credentials,
    /// Socket of SPDK's server.
    pub socket: PathBuf,
}
