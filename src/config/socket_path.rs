//! Paths of Unix sockets.

use std::path::{Path, PathBuf};

use super::{ConfigError, SpdkRpc};

/// Maximum length of a Unix socket's path, in bytes (unix(7), without the terminator).
const PATH_MAX: usize = 107;

/// Refuses a path that the address of a socket cannot hold.
pub(super) fn check(setting: &'static str, path: &Path) -> Result<(), ConfigError> {
    let length = path.as_os_str().len();
    if (1..=PATH_MAX).contains(&length) {
        return Ok(());
    }
    let reason = format!("{path:?} has {length} bytes; the path of a socket has 1 to {PATH_MAX}");
    Err(ConfigError::Value { setting, reason })
}

/// Refuses the socket of the API where the socket of SPDK's JSON-RPC is.
pub(super) fn listen_uds(
    path: Option<PathBuf>,
    rpc: Option<&SpdkRpc>,
) -> Result<Option<PathBuf>, ConfigError> {
    let Some(path) = path else { return Ok(None) };
    check("listen-uds", &path)?;
    match rpc {
        Some(rpc) if rpc.socket == path => Err(ConfigError::Value {
            setting: "listen-uds",
            reason: format!(
                "{} is spdk-rpc-socket too: give each its own",
                path.display()
            ),
        }),
        _ => Ok(Some(path)),
    }
}
