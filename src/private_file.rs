//! Files with secrets or policies, which must not be accessible to others: opened, and replaced.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces a file atomically by one of this content that its owner alone may read and write, from the start. The content is
/// on the disk then; that it has the name may be lost with the power until the directory is synced.
///
/// # Errors
/// The system's error.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut unfinished = OsString::from(path);
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    // What an earlier attempt left, or what somebody has put there, is not written to.
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)
}

/// Opens a regular file whose mode has none of the bits in `refused`.
///
/// # Errors
/// The system's error, or the text of `open_to_others` for the file's mode.
pub fn open(
    path: &Path,
    refused: u32,
    open_to_others: impl FnOnce(u32) -> String,
) -> Result<File, String> {
    let text = |error: std::io::Error| match error.kind() {
        ErrorKind::PermissionDenied => {
            format!("{error}: run as its owner, or give the file to this user (chown)")
        }
        _ => error.to_string(),
    };
    let file = File::open(path).map_err(text)?;
    let metadata = file.metadata().map_err(text)?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    match metadata.permissions().mode() & 0o7777 {
        mode if mode & refused != 0 => Err(open_to_others(mode)),
        _ => Ok(file),
    }
}
