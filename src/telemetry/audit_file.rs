//! The file of the audit log: opening it, and checking whether it could be opened.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Access, access};

use crate::private_dir;

/// Mode of a new file: accessible to its owner only.
pub(super) const MODE: u32 = 0o600;

/// Opens a file for appending. Refuses files that can block the writer.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.append(true).create(true).mode(MODE);
    // Without NONBLOCK, opening a FIFO without a reader would block the start.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    options.custom_flags(flags.bits().cast_signed());
    let file = options.open(path)?;
    check_kind(&file.metadata()?)?;
    Ok(file)
}

/// Checks whether [`open`] would succeed, without creating the file.
///
/// # Errors
/// One line for the operator.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let fail = |error: io::Error| format!("audit-log {}: {error}", path.display());
    match std::fs::metadata(path) {
        Ok(metadata) => {
            check_kind(&metadata).map_err(fail)?;
            // It is read too: its last line is continued.
            access(path, Access::READ_OK | Access::WRITE_OK).map_err(|error| fail(error.into()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dir = path.parent().unwrap_or(Path::new("/"));
            private_dir::check_writable(dir)
                .map_err(|reason| format!("audit-log {}: {reason}", path.display()))
        }
        Err(error) => Err(fail(error)),
    }
}

fn check_kind(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_char_device() {
        return Ok(());
    }
    let message = "it is neither a regular file nor a character device";
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_could_be_opened_is_told_from_others_and_none_is_created() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit");
        assert_eq!(check(&path), Ok(()));
        assert!(!path.exists());
        open(&path).expect("opened");
        assert_eq!(check(&path), Ok(()));
        let inside = check(&path.join("audit")).expect_err("a file is no directory");
        assert!(inside.contains("Not a directory"), "{inside}");
        let none = check(&dir.path().join("none/audit")).expect_err("no directory");
        assert!(
            none.starts_with("audit-log ") && none.contains("there is no directory"),
            "{none}"
        );
        let error = check(dir.path()).expect_err("a directory");
        assert!(error.contains("neither a regular file"), "{error}");
    }
}
