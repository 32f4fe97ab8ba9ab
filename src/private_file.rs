//! Files with secrets or policies, which must not be accessible to others.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
