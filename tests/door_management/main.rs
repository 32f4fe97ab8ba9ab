//! The management port under attack: silent and incomplete connections, cross-origin requests, password
//! guessing, encoded path separators, floods, expensive certificates.

#[path = "../common/mod.rs"]
mod common;

mod connections;
mod floods;
mod removed;
mod requests;
mod secrets;
mod spdk_commands;
mod tls;

use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Options, Target, free_port};

/// Upper bound of an answer while the server is not blocked, on a busy machine too.
const ANSWER: Duration = Duration::from_secs(2);

/// Opens a TCP connection with a read timeout.
fn dial(address: SocketAddr, read: Duration) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the port accepts connections");
    stream.set_read_timeout(Some(read)).expect("a socket");
    stream
}

/// Starts a target that serves SPDK's JSON-RPC over HTTP (user "admin", password "right") and over a
/// Unix socket; returns both addresses.
async fn with_proxy() -> (Target, SocketAddr, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let password = directory.path().join("password");
    std::fs::write(&password, "right\n").expect("a file");
    std::fs::set_permissions(&password, Permissions::from_mode(0o600))
        .expect("the permissions can be set");
    let (options, socket) = Options::default().with_rpc();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let options = options.args([
        "--spdk-rpc-http".to_owned(),
        address.to_string(),
        "--spdk-rpc-user".to_owned(),
        format!("admin:{}", password.display()),
    ]);
    // The password file is read at start, and may be deleted afterwards.
    (Target::start_with(options).await, address, socket)
}

/// Sends bytes; returns what is received until the server closes or the read timeout expires.
fn exchange(address: SocketAddr, bytes: &[u8], read: Duration) -> String {
    let mut stream = dial(address, read);
    stream.write_all(bytes).expect("the request is sent");
    let mut answer = Vec::new();
    // A server that rejects the request may close with unread input (a reset).
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Parses the status of an HTTP/1.1 response; 0 if there is none.
fn status(answer: &str) -> u16 {
    answer
        .get(9..12)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0)
}

/// Waits until the server closes the connection; returns the time since `begun`.
fn closed(mut stream: &TcpStream, begun: Instant, within: Duration) -> Duration {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return begun.elapsed(),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(begun.elapsed() < within, "still open after {within:?}");
            }
            Err(_) => return begun.elapsed(),
        }
    }
}
