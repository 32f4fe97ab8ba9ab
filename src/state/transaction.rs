//! Transactions of the database, and reading the head of its last one.

use redb::{Database, ReadableDatabase};

use super::Error;
use super::fault::storage_error;
use super::format::{HEAD, Head, META, RECORDS};
use super::seal::Sealer;

/// A sealed change to write; `None` removes the record.
pub(super) struct Staged {
    pub key: String,
    pub sealed: Option<Vec<u8>>,
}

/// Commit protocol of a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phases {
    /// One phase: one sync.
    One,
    /// Two phases: a sync of the pages, then a sync of the header that makes them current.
    Two,
}

/// Opens the database and reads its head.
pub(super) fn open(
    database: Result<Database, redb::Error>,
    sealer: &Sealer,
) -> Result<(Database, Head), Error> {
    let opened = || -> Result<_, redb::Error> {
        let database = database?;
        let meta = database.begin_read()?.open_table(META)?;
        let head = meta.get(HEAD)?;
        let head = head.and_then(|head| Head::open(sealer, head.value()));
        Ok((database, head))
    };
    let (database, head) = opened().map_err(|error| storage_error(&error))?;
    let head = head.ok_or_else(|| Error::Damaged("the head is not what was sealed".to_owned()))?;
    Ok((database, head))
}

/// Writes one transaction. `before` collects the value that each change replaces, for a rollback.
pub(super) fn write(
    database: &Database,
    staged: &[Staged],
    head: &[u8],
    phases: Phases,
    before: &mut Vec<(String, Option<Vec<u8>>)>,
) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_two_phase_commit(phases == Phases::Two);
    {
        let mut records = txn.open_table(RECORDS)?;
        for Staged { key, sealed } in staged {
            let replaced = match sealed {
                Some(sealed) => records.insert(key.as_str(), sealed.as_slice())?,
                None => records.remove(key.as_str())?,
            };
            before.push((key.clone(), replaced.map(|old| old.value().to_vec())));
        }
        txn.open_table(META)?.insert(HEAD, head)?;
    }
    txn.commit()?;
    Ok(())
}
