//! Files with secrets or policies, which must not be accessible to others: opened, and replaced.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

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

/// Opens a regular file whose mode has none of the bits in `refused`, and which belongs to root or to the process's user:
/// another owner could read it, or replace what is in it.
///
/// # Errors
/// The system's error, whose the file is, or the text of `open_to_others` for the file's mode.
pub fn open(
    path: &Path,
    refused: u32,
    open_to_others: impl FnOnce(u32) -> String,
) -> Result<File, String> {
    open_if(path, |metadata| match mode(metadata) {
        mode if mode & refused != 0 => Err(open_to_others(mode)),
        _ => Ok(()),
    })
}

/// Opens a regular file that belongs to root or to the process's user and that passes `check`.
///
/// # Errors
/// The system's error, whose the file is, or that of `check`.
pub fn open_if(
    path: &Path,
    check: impl FnOnce(&Metadata) -> Result<(), String>,
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
    check_owner(metadata.uid(), geteuid().as_raw())?;
    check(&metadata)?;
    Ok(file)
}

/// The permissions of a file.
pub fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o7777
}

fn check_owner(owner: u32, own: u32) -> Result<(), String> {
    if owner == 0 || owner == own {
        return Ok(());
    }
    let whom = match own {
        0 => "root (chown 0)".to_owned(),
        own => format!("root or this user (chown {own})"),
    };
    Err(format!(
        "it belongs to uid {owner}, who can read and replace it: give it to {whom}, or run as that user"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_user_is_refused_to_root_too() {
        for (owner, own) in [(0, 0), (0, 7), (7, 7)] {
            assert_eq!(check_owner(owner, own), Ok(()));
        }
        for (owner, own, right) in [(7, 0, "chown 0"), (7, 8, "chown 8")] {
            let error = check_owner(owner, own).unwrap_err();
            assert!(error.contains("uid 7") && error.contains(right), "{error}");
        }
    }
}
