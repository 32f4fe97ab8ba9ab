//! The JSON-RPC socket: created on request only, and accessible to its owner only.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::common::{Options, Target};
use crate::place::Place;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_socket_is_private_and_removed_with_the_target() {
    let place = Place::new();
    // A stale socket, as left by a killed process.
    drop(UnixListener::bind(place.socket()).expect("a socket"));
    let target = Target::start_with(place.options()).await;
    let metadata = std::fs::metadata(place.socket()).expect("the socket exists");
    assert!(metadata.file_type().is_socket());
    assert_eq!(
        metadata.permissions().mode() & 0o077,
        0,
        "others may access the socket"
    );
    // For monitoring tools: threads and pollers, and SPDK's trace buffer.
    let threads = place.rpc(&["thread_get_stats"]).await.expect("an answer");
    assert!(
        threads["threads"]
            .as_array()
            .is_some_and(|threads| !threads.is_empty()),
        "{threads}"
    );
    let trace = place
        .rpc(&["trace_get_info"])
        .await
        .expect("a trace buffer");
    let file = format!(
        "/dev/shm{}",
        trace["tpoint_shm_path"]
            .as_str()
            .expect("a path")
            .replace("/dev/shm", "")
    );
    assert!(Path::new(&file).exists(), "{trace}");
    target.stop();
    for left in [place.socket(), place.lock(), file.into()] {
        assert!(!left.exists(), "{} is left behind", left.display());
    }
}

/// Returns the Unix sockets that a process listens on, from /proc: its file descriptors whose inode the
/// kernel lists with a path.
fn listening(target: &Target) -> Vec<String> {
    let folder = format!("/proc/{}/fd", target.pid().as_raw_nonzero());
    let files = std::fs::read_dir(folder).expect("its files");
    let inodes: Vec<String> = files
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .filter_map(|to| {
            let inode = to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let all = std::fs::read_to_string("/proc/net/unix").expect("the kernel's list");
    let named = all.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (inode, path) = (columns.get(6)?, columns.get(7)?);
        inodes
            .iter()
            .any(|own| own == inode)
            .then(|| (*path).to_owned())
    });
    named.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_the_setting_there_is_no_socket() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    assert_eq!(listening(&target), [place.socket().display().to_string()]);
    let target = {
        let next = Options::default().after(&target);
        target.stop();
        Target::start_with(next).await
    };
    assert!(listening(&target).is_empty(), "{:?}", listening(&target));
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unsafe_or_useless_settings_fail_the_start() {
    let place = Place::new();
    let alone = Options::default().args(["--spdk-rpc-http", "127.0.0.1:0"]);
    assert!(
        place
            .refused(&alone)
            .contains("spdk-rpc-socket: is needed with spdk-rpc-http")
    );

    place.set_mode(0o644);
    let line = place.refused(&place.with_proxy());
    assert!(
        line.contains("spdk-rpc-user") && line.contains("(mode 0644)"),
        "{line}"
    );
    place.set_mode(0o600);

    let listener = UnixListener::bind(place.socket()).expect("a socket");
    let line = place.refused(&place.options());
    assert!(line.contains("another program listens there"), "{line}");
    assert!(
        place.socket().exists(),
        "the other program's socket was removed"
    );
    drop(listener);

    std::fs::remove_file(place.socket()).expect("the socket can be removed");
    std::fs::write(place.socket(), "data").expect("a file");
    let line = place.refused(&place.options());
    assert!(line.contains("not a socket"), "{line}");
    assert_eq!(
        std::fs::read(place.socket()).expect("the file is kept"),
        b"data"
    );
}
