//! The management port, before strangers: silent and half-sent connections, pages of other origins,
//! guesses of a password, paths that a proxy in front would read otherwise.

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

/// No answer of a server that is not held up takes longer, also on a busy machine.
const ANSWER: Duration = Duration::from_secs(2);

/// A connection that is open, with a bound on reads.
fn dial(address: SocketAddr, read: Duration) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the port takes connections");
    stream.set_read_timeout(Some(read)).expect("a socket");
    stream
}

/// A target whose SPDK commands are served over HTTP, at this address, for "admin" with the password "right",
/// and over this socket.
async fn with_proxy() -> (Target, SocketAddr, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let password = directory.path().join("password");
    std::fs::write(&password, "right\n").expect("a file");
    std::fs::set_permissions(&password, Permissions::from_mode(0o600)).expect("it is ours");
    let (options, socket) = Options::default().with_rpc();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let options = options.args([
        "--spdk-rpc-http".to_owned(),
        address.to_string(),
        "--spdk-rpc-user".to_owned(),
        format!("admin:{}", password.display()),
    ]);
    // The password is read at the start.
    (Target::start_with(options).await, address, socket)
}

/// Sends bytes and gives what comes until the server closes or `read` passes without a byte.
fn exchange(address: SocketAddr, bytes: &[u8], read: Duration) -> String {
    let mut stream = dial(address, read);
    stream.write_all(bytes).expect("the server reads");
    let mut answer = Vec::new();
    // A server that refuses may close with input unread.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of an HTTP/1.1 answer.
fn status(answer: &str) -> u16 {
    answer
        .get(9..12)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0)
}

/// Waits until the server closes this connection; how long that took from `begun`.
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
