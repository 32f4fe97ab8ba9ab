//! Errors that keep a state from being opened, and the mapping of redb's errors.

use super::Error;

/// Why a state cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Sealed with another key.
    WrongKey,
    /// Another format; says which would be accepted.
    Format(String),
    /// Damaged; lists each damaged place.
    Damaged(Vec<String>),
    /// Damaged, as redb says, which names no place.
    Corrupt(String),
    /// I/O error.
    Storage(Error),
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Self {
        match storage_error(&error) {
            Error::Damaged(what) => Self::Corrupt(what),
            other => Self::Storage(other),
        }
    }
}

/// Maps an error of redb to a store error.
pub(super) fn storage_error(error: &redb::Error) -> Error {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        redb::Error::Io(io) if matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
            Error::Full(format!(
                "the file system of the state directory is full ({io})"
            ))
        }
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            Error::Damaged(io.to_string())
        }
        redb::Error::Io(io) => Error::Io(format!("the state file cannot be used: {io}")),
        redb::Error::Corrupted(what) => Error::Damaged(what.clone()),
        redb::Error::RepairAborted => Error::Damaged("the last state is not whole".to_owned()),
        redb::Error::ValueTooLarge(size) => Error::TooLarge(format!("{size} bytes are too many")),
        redb::Error::TableDoesNotExist(table) => {
            Error::Damaged(format!("the table {table} is missing"))
        }
        redb::Error::DatabaseAlreadyOpen => {
            Error::Io("the state file is in use by another process".to_owned())
        }
        other => Error::Io(format!("the state file cannot be used: {other}")),
    }
}
