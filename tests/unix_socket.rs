//! gRPC on a Unix socket, for local clients.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{Options, Target};

/// Runs the command line client over the socket.
fn shell(socket: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opi-spdk"));
    command.env("OPI_SPDK_ADDR", format!("unix:{}", socket.display()));
    command.args(args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Starts a program with this socket, which must fail; returns its error output.
fn refusal(socket: &Path) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let place = |name: &str| dir.path().join(name).display().to_string();
    let out = Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .args([
            "--no-huge",
            "--grpc-addr=127.0.0.1:0",
            "--http-addr=127.0.0.1:0",
        ])
        .args([
            "--state-dir",
            &place("state"),
            "--ctrlr-dir",
            &place("ctrlr"),
        ])
        .arg("--listen-uds")
        .arg(socket)
        .output()
        .expect("the program starts");
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    text(&out.stderr)
}

#[tokio::test]
async fn the_api_is_served_on_a_private_unix_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock");
    let options = || Options::default().args(["--listen-uds", socket.to_str().expect("UTF-8")]);
    let mut target = Target::start_with(options()).await;
    let mode = std::fs::metadata(&socket).expect("a socket").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let disk = [
        "create",
        "null-volume",
        "disk",
        "block_size=512",
        "blocks_count=64",
    ];
    let made = shell(&socket, &disk);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let log = target.log();
    let user = rustix::process::geteuid().as_raw();
    let line = log.lines().find(|line| line.contains("CreateNullVolume"));
    let line = line.expect("a line for the call");
    assert!(line.contains(&format!("peer=uid:{user} ")), "{line}");

    // A socket in use is not taken over, and a file that is not a socket is left alone.
    let taken = refusal(&socket);
    assert!(taken.contains("another program listens there"), "{taken}");
    let file = dir.path().join("data");
    std::fs::write(&file, "data").expect("the file can be written");
    let foreign = refusal(&file);
    assert!(foreign.contains("is not a socket"), "{foreign}");
    assert_eq!(std::fs::read(&file).expect("the file is kept"), b"data");
    let shown = shell(&socket, &["get", "null-volumes", "disk"]);
    assert!(text(&shown.stdout).contains("volumes/disk"), "{shown:?}");

    // A stale socket of a killed process is replaced, and a stop removes the socket.
    target.kill();
    assert!(socket.exists());
    let gone = shell(&socket, &["get"]);
    assert!(!gone.status.success());
    let next = Target::start_with(options().after(&target)).await;
    let shown = shell(&socket, &["get"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    next.stop();
    assert!(!socket.exists());
}
