//! gRPC on a Unix socket, for local clients.

mod common;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use rustix::thread::{Uid, set_thread_res_uid};
use serde_json::json;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use common::{Client, Options, Target, eventually};

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

/// Connects as another user: the kernel takes the user of the thread that connects.
fn connect_as(uid: u32, socket: &Path) -> std::io::Result<UnixStream> {
    let socket = socket.to_owned();
    let connect = move || {
        let uid = Uid::from_raw(uid);
        set_thread_res_uid(uid, uid, uid)?;
        UnixStream::connect(socket)
    };
    let thread = std::thread::spawn(connect);
    thread.join().expect("the thread does not panic")
}

async fn client_as(uid: u32, socket: &Path) -> Client {
    let stream = connect_as(uid, socket).expect("the user reaches the socket");
    stream.set_nonblocking(true).expect("a socket");
    let mut stream = Some(tokio::net::UnixStream::from_std(stream).expect("a socket"));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::other("it has one connection")) }
    });
    let endpoint = Endpoint::from_static("http://local");
    let channel = endpoint.connect_with_connector(connector).await;
    Client::over(channel.expect("a connection"))
}

fn mode(path: &Path) -> u32 {
    let metadata = std::fs::metadata(path).expect("it exists");
    metadata.permissions().mode() & 0o777
}

fn access(file: &Path, grants: &str) {
    std::fs::write(file, grants).expect("the file can be written");
    std::fs::set_permissions(file, Permissions::from_mode(0o600)).expect("it is ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn users_connect_by_their_grants_and_others_cannot_keep_them_out() {
    const VIEWER: u32 = 54001;
    const OTHER: u32 = 54002;
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("it is ours");
    let (socket, file) = (dir.path().join("api.sock"), dir.path().join("access.toml"));
    access(
        &file,
        &format!("[[grant]]\nrole = \"viewer\"\nuid = {VIEWER}\n"),
    );
    let show = |path: &Path| path.display().to_string();
    let options = Options::default()
        .args(["--listen-uds", &show(&socket)])
        .args(["--access-file", &show(&file), "--max-connections", "16"]);
    let target = Target::start_with(options).await;
    assert_eq!(mode(&socket), 0o666);
    let disk = json!({ "null_volume": { "block_size": 512, "blocks_count": 64 } });
    let viewer = client_as(VIEWER, &socket).await;
    viewer.ok("ListNullVolumes", json!({})).await;
    viewer
        .fails("CreateNullVolume", disk.clone(), Code::PermissionDenied)
        .await;
    client_as(0, &socket)
        .await
        .ok("CreateNullVolume", disk)
        .await;
    let other = client_as(OTHER, &socket).await;
    let status = other
        .fails("ListNullVolumes", json!({}), Code::Unauthenticated)
        .await;
    assert!(status.message().contains("uid:54002"), "{status}");

    // Health checks are open to all: connections with one in flight are not displaced.
    let (tell, mut busy) = tokio::sync::mpsc::channel(24);
    let mut held = Vec::new();
    for uid in OTHER + 1..OTHER + 25 {
        let (client, tell) = (client_as(uid, &socket).await, tell.clone());
        held.push(tokio::spawn(async move {
            let request = HealthCheckRequest::default();
            let watch = HealthClient::new(client.channel()).watch(request).await;
            let _ = tell.send(watch.is_ok()).await;
            std::future::pending::<()>().await;
        }));
    }
    let first = tokio::time::timeout(Duration::from_secs(15), busy.recv()).await;
    assert_eq!(first, Ok(Some(true)), "health checks are served");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let newcomer = client_as(VIEWER, &socket).await;
    newcomer.ok("ListNullVolumes", json!({})).await;
    held.iter().for_each(tokio::task::JoinHandle::abort);

    // Without grants for users the socket is its owner's again, and open connections have lost their right.
    let token = dir.path().join("token");
    access(&token, "0123456789abcdef0123456789abcdef\n");
    access(
        &file,
        &format!("[[grant]]\nrole = \"admin\"\ntoken-file = {token:?}\n"),
    );
    target.signal(Signal::HUP);
    let closed = async || (mode(&socket) == 0o600).then_some(());
    eventually(
        "the socket is closed to users",
        Duration::from_secs(20),
        closed,
    )
    .await;
    let refused = connect_as(VIEWER, &socket).expect_err("the file mode keeps the user out");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    newcomer
        .fails("ListNullVolumes", json!({}), Code::Unauthenticated)
        .await;

    // A reload that changes nothing of that leaves the socket as an operator made it.
    let reloads = || target.log().matches("configuration reloaded").count();
    let before = reloads();
    std::fs::set_permissions(&socket, Permissions::from_mode(0o660)).expect("it is ours");
    target.signal(Signal::HUP);
    let reloaded = async || (reloads() > before).then_some(());
    eventually("it is reloaded", Duration::from_secs(20), reloaded).await;
    assert_eq!(mode(&socket), 0o660);
    target.stop();
}
