//! The directory of controllers' sockets. A vhost-user controller has a socket in it; a vfio-user controller has its
//! own subdirectory for its socket and its registers.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::private_dir::{dir_error, private_dir};

/// Socket of a vfio-user controller.
const SOCKET: &str = "cntrl";

/// Files of a vfio-user controller's directory.
const FILES: [&str; 2] = [SOCKET, "bar0"];

/// Creates the directory if necessary, locks it for the lifetime of the returned file, and removes stale sockets of
/// dead processes, whose names a new controller may need. Other files are left alone. An error is one line for the
/// operator.
pub(crate) fn take(dir: &Path) -> Result<File, String> {
    private_dir("ctrlr-dir", dir)?;
    let fail = |error: std::io::Error| dir_error("ctrlr-dir", dir, &error);
    let directory = File::open(dir).map_err(fail)?;
    match directory.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(format!(
                "another opi-spdk has its sockets in ctrlr-dir {}: choose another directory",
                dir.display()
            ));
        }
        Err(TryLockError::Error(error)) => return Err(fail(error)),
    }
    for entry in dir.read_dir().map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        // Failures are ignored: nothing else changes our files, and foreign files may stay.
        let _ = match is_stale(&path.join(SOCKET)) {
            true => clear(&path),
            false if is_stale(&path) => std::fs::remove_file(&path),
            false => Ok(()),
        };
    }
    Ok(directory)
}

/// Path of the socket in a vfio-user controller's directory.
pub(crate) fn socket(dir: &str) -> PathBuf {
    Path::new(dir).join(SOCKET)
}

/// Creates the directory of a vfio-user controller, without stale files of a dead process.
pub(crate) async fn make(dir: &str) -> Result<(), Error> {
    tokio::fs::create_dir_all(dir)
        .await
        .map_err(|error| Error::failed_precondition(dir, format!("directory {dir}: {error}")))?;
    remove_files(Path::new(dir));
    Ok(())
}

/// Removes the directory of a deleted vfio-user controller.
pub(crate) fn remove(dir: &str) {
    if let Err(error) = clear(Path::new(dir)) {
        tracing::warn!(dir, %error, "the directory of a controller that is gone stays");
    }
}

/// Whether this is a stale socket: nothing listens on it.
fn is_stale(path: &Path) -> bool {
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|about| about.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn clear(dir: &Path) -> std::io::Result<()> {
    remove_files(dir);
    std::fs::remove_dir(dir)
}

fn remove_files(dir: &Path) {
    for file in FILES {
        // Usually SPDK has already removed the file.
        let _ = std::fs::remove_file(dir.join(file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_the_dead_have_left_goes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let listen = |name: &str| UnixListener::bind(path(name)).unwrap();
        for name in ["dead", "live", "kept", "empty"] {
            std::fs::create_dir(path(&format!("dir-{name}"))).unwrap();
        }
        for name in ["dir-dead/bar0", "dir-kept/bar0", "dir-kept/notes", "file"] {
            std::fs::write(path(name), "").unwrap();
        }
        drop((
            listen("dead"),
            listen("dir-dead/cntrl"),
            listen("dir-kept/cntrl"),
        ));
        let _living = (listen("live"), listen("dir-live/cntrl"));
        std::os::unix::fs::symlink(path("dead"), path("link")).unwrap();

        let taken = take(dir.path()).unwrap();
        let left = dir.path().read_dir().unwrap();
        let left: BTreeSet<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        let stays = ["dir-empty", "dir-kept", "dir-live", "file", "link", "live"];
        assert_eq!(left, stays.map(Into::into).into());
        assert!(path("dir-kept/notes").exists() && path("dir-live/cntrl").exists());

        let refused = take(dir.path()).unwrap_err();
        assert!(refused.contains("another opi-spdk"), "{refused}");
        drop(taken);
        take(dir.path()).unwrap();
    }
}
