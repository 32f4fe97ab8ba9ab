//! The file of the audit log: opening it, checking whether it could be opened, and the file with its last line's hash.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::chain::Head;
use crate::{private_dir, private_file};

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

/// The file `FILE.head` beside an audit log: number and hash of the log's last line, as of a second ago at most.
///
/// Invariant: the line is on the disk before it is named here, so a crash leaves this file behind the log and never ahead.
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// The file beside a log, if the log is a regular file.
    pub(super) fn beside(log: &Path, file: &File) -> Option<Self> {
        let regular = file.metadata().is_ok_and(|about| about.is_file());
        regular.then(|| Self::of(log))
    }

    /// The file beside a log, or beside what a link is to.
    pub(crate) fn of(log: &Path) -> Self {
        let log = std::fs::canonicalize(log).unwrap_or(log.to_owned());
        let mut path = OsString::from(log);
        path.push(".head");
        Self(path.into())
    }

    /// Path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Reads it; `None` if it does not exist.
    ///
    /// # Errors
    /// It cannot be read, or has another form.
    pub(crate) fn read(&self) -> io::Result<Option<Head>> {
        const MOST: u64 = 256;
        let wrong =
            |kind, reason: String| io::Error::new(kind, format!("{}: {reason}", self.0.display()));
        let fail = |error: io::Error| wrong(error.kind(), error.to_string());
        let file = match File::open(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(fail)?,
        };
        let mut text = String::new();
        file.take(MOST).read_to_string(&mut text).map_err(fail)?;
        let head = text.trim_ascii_end().parse();
        head.map(Some)
            .map_err(|reason| wrong(io::ErrorKind::InvalidData, reason))
    }

    /// Replaces it.
    pub(super) fn write(&self, head: Head) -> io::Result<()> {
        private_file::replace(&self.0, format!("{head}\n").as_bytes())
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
