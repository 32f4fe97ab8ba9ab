//! SPDK's return codes as errors: the failed operation, its errno, and details that SPDK or this crate knows.

use std::ffi::c_int;
use std::fmt;

/// A positive `errno` value, as in errno(3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Returns the description of the number by the C library (strerror).
    pub fn meaning(self) -> String {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        match text.find(" (os error") {
            Some(end) => text[..end].to_owned(),
            None => text,
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {})", self.0, self.meaning())
    }
}

/// A failure of an SPDK operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {}{}", errno.meaning(), detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct Error {
    /// The operation in a few words: "create null bdev".
    pub operation: &'static str,
    /// The cause.
    pub errno: Errno,
    /// Further details where known: the invalid value, the step that failed.
    pub detail: Option<String>,
    /// Whether a panic cut the operation off.
    pub is_cut_off: bool,
    /// Whether its effects are unknown: it was cut off, goes on after a timeout, or could not be rolled back. The
    /// caller has to have SPDK agree with its records again.
    pub is_unsettled: bool,
}

impl Error {
    /// Creates an error of `operation`. `errno` may have either sign: SPDK returns negative values, its callbacks
    /// both. 0 becomes EIO.
    pub fn new(operation: &'static str, errno: i32) -> Self {
        let errno = match errno {
            0 => libc::EIO,
            other => other.saturating_abs(),
        };
        Self {
            operation,
            errno: Errno(errno),
            detail: None,
            is_cut_off: false,
            is_unsettled: false,
        }
    }

    /// Creates the error of an operation that a panic cut off.
    pub(crate) fn cut_off(operation: &'static str, errno: i32) -> Self {
        Self {
            is_cut_off: true,
            is_unsettled: true,
            ..Self::new(operation, errno).with_detail("it was cut off by a fault of the program")
        }
    }

    /// Creates the error of an operation that has not ended in time and goes on by itself.
    pub(crate) fn unfinished(operation: &'static str) -> Self {
        Self {
            is_unsettled: true,
            ..Self::new(operation, libc::ETIMEDOUT)
        }
    }

    /// Marks the effects as unknown.
    pub(crate) fn unsettled(mut self) -> Self {
        self.is_unsettled = true;
        self
    }

    /// Marks the operation as rolled back completely, unless a panic cut it off.
    pub(crate) fn undone(mut self) -> Self {
        self.is_unsettled = self.is_cut_off;
        self
    }

    /// Replaces the detail.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a failed rollback to the error of a change; unchanged if the rollback succeeded.
    pub fn after_undo<T>(mut self, undo: Result<T, Error>) -> Self {
        let Err(left) = undo else { return self };
        self.is_cut_off |= left.is_cut_off;
        self.is_unsettled = true;
        let detail = self.detail.as_deref().unwrap_or("it was to be undone");
        let detail = format!(
            "{detail}; what was there before could not be put back either, which is tried again ({left})"
        );
        self.with_detail(detail)
    }
}

/// Converts a return code by SPDK's convention: negative is an errno, anything else is success.
pub(crate) fn check(operation: &'static str, rc: c_int) -> Result<(), Error> {
    if rc < 0 {
        Err(Error::new(operation, rc))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_sign_of_an_errno_is_the_same_error() {
        assert_eq!(Error::new("x", -libc::EBUSY), Error::new("x", libc::EBUSY));
    }

    #[test]
    fn an_error_says_operation_meaning_and_detail() {
        let error = Error::new("create null bdev", -libc::EEXIST).with_detail("bdev \"a\" exists");
        assert_eq!(
            error.to_string(),
            "create null bdev: File exists: bdev \"a\" exists"
        );
    }

    #[test]
    fn a_change_that_could_not_be_undone_says_so() {
        let error = Error::new("create null bdev", libc::EEXIST).with_detail("bdev \"a\" exists");
        assert_eq!(error.clone().after_undo(Ok(())), error);
        let lost = error.after_undo(Err::<(), _>(Error::new("create null bdev", libc::ENOMEM)));
        assert_eq!(lost.errno, Errno(libc::EEXIST));
        assert!(lost.is_unsettled && !lost.is_cut_off);
        let text = lost.to_string();
        assert!(text.contains("\"a\" exists; what was there before could not be put back"));
        assert!(
            text.ends_with("(create null bdev: Cannot allocate memory)"),
            "{text}"
        );
    }

    #[test]
    fn an_undo_that_is_cut_off_leaves_unknown_effects() {
        let error = Error::new("create null bdev", libc::EEXIST);
        assert!(!error.is_cut_off);
        let undo = Error::cut_off("create null bdev", libc::EIO);
        assert!(error.after_undo(Err::<(), _>(undo.clone())).is_cut_off);
        let error = undo.after_undo(Ok(())).with_detail("more");
        assert!(error.is_cut_off && error.is_unsettled);
    }

    #[test]
    fn success_is_not_an_error() {
        assert_eq!(check("x", 0), Ok(()));
        assert_eq!(check("x", 1), Ok(()));
        assert!(check("x", -1).is_err());
    }
}
