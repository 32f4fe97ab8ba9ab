//! Unix sockets in the file system: removing stale ones, and binding our own.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::umask;

use crate::private_dir;

/// Removes a stale socket, on which nothing listens.
///
/// # Errors
/// What occupies the path.
pub fn clear(path: &Path) -> Result<(), String> {
    if is_stale(path)? {
        std::fs::remove_file(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Whether a socket that nobody listens on any more is at the path; if none is, a socket can be made there.
///
/// # Errors
/// What is in the way at the path.
pub fn is_stale(path: &Path) -> Result<bool, String> {
    match occupant(path)? {
        Occupant::Nothing => Ok(false),
        Occupant::Stale => Ok(true),
        Occupant::Listener => Err(format!("{}: another program listens there", path.display())),
    }
}

/// What is at the path of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing.
    Nothing,
    /// A socket on which nobody listens.
    Stale,
    /// A socket on which a program listens.
    Listener,
}

/// Looks at the path of a socket.
///
/// # Errors
/// What keeps every program from making a socket there.
pub fn occupant(path: &Path) -> Result<Occupant, String> {
    let fail = |reason: String| format!("{}: {reason}", path.display());
    private_dir::check_writable(path.parent().unwrap_or(Path::new("/"))).map_err(fail)?;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(fail(error.to_string())),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(fail("it is there already, and is not a socket".to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Occupant::Stale),
        Err(error) => Err(fail(format!("whether it is in use is not known: {error}"))),
        Ok(_) => Ok(Occupant::Listener),
    }
}

/// Lets all users connect to a socket, or only its owner and root. Whoever admits all must refuse those whose user ID
/// (SO_PEERCRED) has no right.
///
/// # Errors
/// One line, with the path. Something else is there, such as a link that somebody has put in the socket's place: it is left
/// as it is.
pub fn admit_users(path: &Path, all: bool) -> Result<(), String> {
    let fail = |reason: String| format!("{}: {reason}", path.display());
    // The mode is that of what has been looked at, whatever the path becomes meanwhile.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(path, flags, Mode::empty());
    let socket = std::fs::File::from(socket.map_err(|error| fail(error.to_string()))?);
    let about = socket.metadata().map_err(|error| fail(error.to_string()))?;
    if !about.file_type().is_socket() {
        return Err(fail("it is no socket any more".to_owned()));
    }
    let mode = if all { 0o666 } else { 0o600 };
    let itself = format!("/proc/self/fd/{}", socket.as_raw_fd());
    std::fs::set_permissions(itself, Permissions::from_mode(mode))
        .map_err(|error| fail(error.to_string()))
}

/// The topmost directory above a socket that not all users may traverse.
pub fn closed_parent(socket: &Path) -> Option<&Path> {
    let mut parents: Vec<_> = socket.ancestors().skip(1).collect();
    parents.reverse();
    parents.into_iter().find(|dir| {
        let mode = dir.metadata().map(|about| about.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o001 == 0)
    })
}

/// A socket that only its owner and root may open. Its file is removed on drop.
pub struct Bound {
    /// Bound, and non-blocking.
    pub listener: UnixListener,
    file: File,
}

/// The file of a socket, removed on drop.
pub struct File(PathBuf);

impl Bound {
    /// Binds a socket, replacing a stale one. Call it before any thread is started, since it temporarily changes the
    /// process's umask.
    ///
    /// # Errors
    /// What occupies the path.
    pub fn new(path: &Path) -> Result<Self, String> {
        clear(path)?;
        let before = umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let fail = |error: std::io::Error| format!("{}: {error}", path.display());
        let listener = bound.map_err(fail)?;
        let file = File(path.to_owned());
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Self { listener, file })
    }

    /// Splits the socket from its file.
    pub fn split(self) -> (UnixListener, File) {
        (self.listener, self.file)
    }
}

impl File {
    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // On failure the stale file is replaced at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_admitted_to_the_socket_itself_and_to_nothing_in_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let [path, other] = ["api.sock", "other"].map(|name| dir.path().join(name));
        let mode = |path: &Path| {
            let about = path.symlink_metadata().expect("it is there");
            about.permissions().mode() & 0o777
        };
        let _listener = UnixListener::bind(&path).expect("a socket");
        for (all, expected) in [(true, 0o666), (false, 0o600)] {
            assert_eq!(admit_users(&path, all), Ok(()));
            assert_eq!(mode(&path), expected);
        }
        std::fs::write(&other, "data").expect("written");
        std::fs::set_permissions(&other, Permissions::from_mode(0o640)).expect("it is ours");
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(&other, &path).expect("linked");
        for wrong in [&path, &other] {
            let error = admit_users(wrong, true).expect_err("no socket");
            assert!(error.contains("it is no socket any more"), "{error}");
        }
        assert_eq!(mode(&other), 0o640);
    }

    #[test]
    fn only_a_socket_without_a_listener_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rpc.sock");
        assert_eq!(clear(&path), Ok(()));
        let listener = UnixListener::bind(&path).expect("a socket");
        assert!(
            clear(&path)
                .expect_err("in use")
                .contains("another program listens there")
        );
        assert!(path.exists());
        drop(listener);
        assert_eq!(clear(&path), Ok(()));
        assert!(!path.exists());

        std::fs::write(&path, "data").expect("it is writable");
        assert!(clear(&path).expect_err("a file").contains("not a socket"));
        assert_eq!(std::fs::read(&path).expect("it stays"), b"data");
        let nowhere = dir.path().join("missing/rpc.sock");
        assert!(
            clear(&nowhere)
                .expect_err("nowhere")
                .contains("no directory")
        );
    }

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("api.sock");
        let bound = Bound::new(&path).expect("a socket");
        let mode = std::fs::metadata(&path).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        admit_users(&path, true).expect("it is ours");
        let mode = std::fs::metadata(&path).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o666);
        for (mode, closed) in [(0o700, Some(dir.path())), (0o711, None)] {
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).expect("it is ours");
            assert_eq!(closed_parent(&path), closed);
        }
        assert!(Bound::new(&path).is_err(), "it is in use");
        drop(bound);
        assert!(!path.exists());
        let long = dir.path().join("x".repeat(120));
        assert!(Bound::new(&long).is_err(), "the kernel takes 107 bytes");
    }
}
