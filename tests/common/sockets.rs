//! The vhost-user sockets of a target: one per device, named after the device.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Returns the names of the sockets of the target whose SPDK JSON-RPC socket is `rpc_socket`.
pub fn devices_beside(rpc_socket: &Path) -> BTreeSet<String> {
    let dir = rpc_socket.parent().expect("a directory").join("ctrlr");
    let entries = std::fs::read_dir(dir).expect("the sockets' directory");
    let is_socket =
        |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_socket());
    let names = entries
        .flatten()
        .filter(is_socket)
        .map(|entry| entry.file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}
