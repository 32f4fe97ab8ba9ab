//! Directories of the server that only their owner may enter, and the lock of the state directory; checks of directories
//! that change nothing.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{Access, access};

/// Creates a directory accessible only to its owner, unless it exists. `setting` names it in errors.
pub(crate) fn private_dir(setting: &str, dir: &Path) -> Result<(), String> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(dir)
        .map_err(|error| dir_error(setting, dir, &error))
}

/// Checks whether [`private_dir`] would succeed and files could be created in the directory, without creating it.
///
/// # Errors
/// One line for the operator.
pub(crate) fn check(setting: &str, dir: &Path) -> Result<(), String> {
    let fail = |error: std::io::Error| dir_error(setting, dir, &error);
    for there in dir.ancestors() {
        let there = or_current(there);
        match there.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
            Ok(metadata) if !metadata.is_dir() => {
                let (dir, there) = (dir.display(), there.display());
                return Err(format!(
                    "{setting} {dir}: {there} is not a directory: name another with --{setting}"
                ));
            }
            Ok(_) => return may_write(there).map_err(fail),
        }
    }
    Ok(())
}

/// Checks that a directory exists and that files can be created in it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_writable(dir: &Path) -> Result<(), String> {
    let dir = or_current(dir);
    if !dir.is_dir() {
        return Err(format!("there is no directory {}", dir.display()));
    }
    may_write(dir).map_err(|error| format!("directory {}: {error}", dir.display()))
}

fn may_write(dir: &Path) -> std::io::Result<()> {
    Ok(access(dir, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// The directory that a path names; the parent of a bare file name is empty, and is the working directory.
fn or_current(dir: &Path) -> &Path {
    match dir.as_os_str().is_empty() {
        true => Path::new("."),
        false => dir,
    }
}

/// The error of a directory, or a file in it, with advice.
pub(crate) fn dir_error(setting: &str, path: &Path, error: &std::io::Error) -> String {
    let right = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            format!(": run as root, mount it writable, or name another directory with --{setting}")
        }
        _ => String::new(),
    };
    format!("{setting} {}: {error}{right}", path.display())
}

/// Locks a state directory for the lifetime of the returned file, creating it if necessary.
pub(crate) fn lock_state_dir(dir: &Path) -> Result<File, String> {
    private_dir("state-dir", dir)?;
    let path = dir.join("lock");
    let fail = |error: std::io::Error| dir_error("state-dir", &path, &error);
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(format!(
                "another opi-spdk (process {}) runs with state-dir {}",
                holder.trim(),
                dir.display()
            ));
        }
        Err(TryLockError::Error(error)) => return Err(fail(error)),
    }
    file.set_len(0).map_err(fail)?;
    writeln!(file, "{}", std::process::id()).map_err(fail)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_could_be_made_is_told_from_others_and_none_is_made() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        assert_eq!(check("state-dir", &dir), Ok(()));
        assert!(!root.path().join("a").exists());
        std::fs::write(root.path().join("a"), "").unwrap();
        let error = check("state-dir", &dir).unwrap_err();
        assert!(
            error.starts_with("state-dir ") && error.contains("Not a directory"),
            "{error}"
        );
        let error = check("state-dir", &root.path().join("a")).unwrap_err();
        assert!(error.contains("a is not a directory"), "{error}");
        assert_eq!(check("state-dir", root.path()), Ok(()));
        assert_eq!(check("state-dir", Path::new("none")), Ok(()));
    }

    #[test]
    fn a_directory_that_must_not_be_written_to_comes_with_what_would_be_right() {
        let dir = Path::new("/var/lib/opi-spdk");
        let said = |number| dir_error("state-dir", dir, &std::io::Error::from_raw_os_error(number));
        // EACCES, EROFS, ENOSPC
        for number in [13, 30] {
            let right =
                ": run as root, mount it writable, or name another directory with --state-dir";
            assert!(said(number).ends_with(right), "{}", said(number));
        }
        assert!(!said(28).contains("root"));
    }
}
