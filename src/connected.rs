//! Detects clients of a Unix socket on which this process (or SPDK in it) listens.

use std::path::Path;

/// The kernel's list of Unix sockets in this network namespace.
const SOCKETS: &str = "/proc/net/unix";

/// Whether a client is connected or connecting to the socket bound to this path.
pub(crate) async fn is_connected(socket: &Path) -> std::io::Result<bool> {
    let list = tokio::fs::read_to_string(SOCKETS).await?;
    Ok(socket
        .to_str()
        .is_some_and(|path| lists_client(&list, path)))
}

/// Columns: `Num RefCount Protocol Flags Type St Inode Path`. A connection has the path of the listening socket.
fn lists_client(list: &str, path: &str) -> bool {
    /// `SS_CONNECTING` and `SS_CONNECTED`.
    const STATES: [&str; 2] = ["02", "03"];
    list.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let state = fields.nth(5);
        // A path may contain spaces: it is the rest of the line.
        let of_path = line
            .strip_suffix(path)
            .is_some_and(|before| before.ends_with(' '));
        of_path && state.is_some_and(|state| STATES.contains(&state))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[tokio::test]
    async fn a_socket_has_a_client_from_connect_until_close() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("with a space");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(!is_connected(&path).await.unwrap());
        let client = UnixStream::connect(&path).unwrap();
        assert!(is_connected(&path).await.unwrap(), "it waits");
        let (served, _) = listener.accept().unwrap();
        assert!(is_connected(&path).await.unwrap(), "it is served");
        assert!(!is_connected(&dir.path().join("space")).await.unwrap());
        drop((client, served));
        assert!(!is_connected(&path).await.unwrap());
    }
}
