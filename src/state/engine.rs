//! Storage engine: records in a redb database, and recovery from I/O errors.
//!
//! After one I/O error redb refuses every further operation, so the database is reopened, which also tells
//! whether the failed commit is durable:
//!
//! ```text
//!           write fails             opens: commit is there ──────────────► it has succeeded
//!   open ───────────────► closed ──► opens: commit is not there ──────────► it has failed
//!    ▲                     └──────► does not open: a copy tells that it is not there: it has failed;
//!    │                              else its outcome is unknown; a timer or the next call retries:
//!    └── a commit that is found then is rolled back first
//! ```
//!
//! A commit costs one sync (redb's one-phase commit): the checksums of redb identify a commit torn by a crash,
//! and opening falls back to the commit before it, whose pages redb has not overwritten. That cannot tell a torn
//! commit from a durable one that was damaged later, so the last commit is confirmed, by an empty two-phase
//! commit, as soon as the store is idle.

use std::collections::HashMap;
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::backoff::Backoff;
use super::fault::{Fault, storage_error};
use super::format::{self, FORMAT, HEAD, Head, META, Migration, RECORDS};
use super::seal::Sealer;
use super::transaction::{Phases, Staged, open, write};
use super::{Change, Entry, Error, Expected};

/// Bytes of redb's page cache.
const CACHE: usize = 16 << 20;

/// Progress that redb reports to its repair callback only when it falls back to the commit before the last one,
/// which it does after one-phase commits alone; every other repair step reports less or more.
const FALLS_BACK: std::ops::Range<f64> = 0.1..0.5;

/// Opens the database, and reopens it after a failure.
pub(super) trait Opener {
    /// Opens the existing database; never creates one.
    fn open(&self) -> Result<Database, redb::Error>;

    /// Opens the database for reading only: a copy of it where opening it needs space that may be missing.
    fn peek(&self) -> Result<Database, redb::Error> {
        self.open()
    }
}

/// Format versions, and the migrations between them.
#[derive(Clone, Copy)]
pub(super) struct Format {
    pub version: u32,
    pub migrations: &'static [Migration],
}

/// Format that this program writes.
pub(super) const CURRENT: Format = Format {
    version: format::VERSION,
    migrations: &format::MIGRATIONS,
};

/// Changes of one commit, with its precondition.
#[derive(Debug)]
pub(super) struct Batch {
    pub changes: Vec<Change>,
    pub expected: Expected,
}

/// The storage engine.
pub(super) struct Engine<O> {
    opener: O,
    sealer: Sealer,
    database: Option<Database>,
    /// Revision of each record in the database.
    revisions: HashMap<String, u64>,
    head: Head,
    doubt: Option<Doubt>,
    /// The last commit is durable but not confirmed yet.
    is_unconfirmed: bool,
    backoff: Backoff,
}

/// A commit answered with [`Error::Unknown`], which may be durable, and the values it replaced.
struct Doubt {
    commits: u64,
    before: Vec<(String, Option<Vec<u8>>)>,
}

/// Content of a database that is kept in memory.
pub(super) struct Loaded {
    pub head: Head,
    pub revisions: HashMap<String, u64>,
}

/// Builder of every database: verifies the checksum of every page on opening. redb falls back to an older commit
/// only where the last one was not confirmed.
pub(super) fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true)
        .set_repair_callback(|session| {
            if FALLS_BACK.contains(&session.progress()) {
                tracing::warn!(
                    "the last change of the state was cut off before it was durable: it is undone"
                );
            }
        });
    builder
}

/// Initializes an empty database.
pub(super) fn initialize(
    database: &Database,
    sealer: &Sealer,
    format: Format,
) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_two_phase_commit(true);
    {
        let head = Head::default().seal(sealer).map_err(other)?;
        let mut meta = txn.open_table(META)?;
        meta.insert(FORMAT, format.version.to_le_bytes().as_slice())?;
        meta.insert(HEAD, head.as_slice())?;
        txn.open_table(RECORDS)?;
    }
    txn.commit()?;
    Ok(())
}

/// Migrates a database to the current format.
pub(super) fn migrate(database: &Database, sealer: &Sealer, format: Format) -> Result<(), Fault> {
    let found = version_of(database, format)?;
    if found == format.version {
        return Ok(());
    }
    let migrated = || -> Result<(), redb::Error> {
        let mut txn = database.begin_write()?;
        txn.set_two_phase_commit(true);
        for step in format.migrations.iter().skip(found as usize - 1) {
            step(&txn, sealer)?;
        }
        let version = format.version.to_le_bytes();
        txn.open_table(META)?.insert(FORMAT, version.as_slice())?;
        txn.commit()?;
        Ok(())
    };
    migrated()?;
    tracing::info!(from = found, to = format.version, "state migrated");
    Ok(())
}

fn version_of(database: &Database, format: Format) -> Result<u32, Fault> {
    let version = || -> Result<_, redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        Ok(meta.get(FORMAT)?.map(|version| version.value().to_vec()))
    };
    let version = version()?.unwrap_or_default();
    format::check_version(&version, format.version).map_err(Fault::Format)
}

/// Reads and unseals all records.
pub(super) fn load(
    database: &Database,
    sealer: &Sealer,
    mut each: impl FnMut(Entry),
) -> Result<Loaded, Fault> {
    let txn = database.begin_read().map_err(redb::Error::from)?;
    let meta = txn.open_table(META).map_err(redb::Error::from)?;
    let head = meta.get(HEAD).map_err(redb::Error::from)?;
    let head = head.ok_or_else(|| Fault::Damaged(vec!["meta: the head is missing".to_owned()]))?;
    let head = Head::open(sealer, head.value()).ok_or(Fault::WrongKey)?;
    let records = txn.open_table(RECORDS).map_err(redb::Error::from)?;
    let mut damage = Vec::new();
    let mut revisions = HashMap::new();
    for record in records.iter().map_err(redb::Error::from)? {
        let (key, sealed) = record.map_err(redb::Error::from)?;
        let key = key.value();
        match format::open(sealer, key, sealed.value()) {
            Some(entry) if entry.revision <= head.revision => {
                revisions.insert(key.to_owned(), entry.revision);
                each(entry);
            }
            Some(entry) => damage.push(format!(
                "{key}: its revision {} is above the state's {}",
                entry.revision, head.revision
            )),
            None => damage.push(format!("{key}: it is not what was sealed")),
        }
    }
    let count = (revisions.len() + damage.len()) as u64;
    if count != head.records {
        damage.push(format!("{count} records are there, of {}", head.records));
    }
    if damage.is_empty() {
        Ok(Loaded { head, revisions })
    } else {
        Err(Fault::Damaged(damage))
    }
}

impl<O: Opener> Engine<O> {
    /// Opens a database and loads its records.
    pub fn start(opener: O, sealer: Sealer, format: Format) -> Result<Self, Fault> {
        let database = opener.open()?;
        migrate(&database, &sealer, format)?;
        let Loaded { head, revisions } = load(&database, &sealer, drop)?;
        Ok(Self {
            opener,
            sealer,
            database: Some(database),
            revisions,
            head,
            doubt: None,
            is_unconfirmed: false,
            backoff: Backoff::default(),
        })
    }

    /// Returns the highest revision ever committed.
    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// Returns the records whose keys begin with `prefix`.
    pub fn scan(&mut self, prefix: &str) -> Result<Vec<Entry>, Error> {
        self.reopen()?;
        let sealer = &self.sealer;
        let mut found = Vec::new();
        let mut lost = None;
        let mut scan = |database: &Database| -> Result<(), redb::Error> {
            let records = database.begin_read()?.open_table(RECORDS)?;
            for record in records.range(prefix..)? {
                let (key, sealed) = record?;
                let key = key.value();
                if !key.starts_with(prefix) {
                    break;
                }
                match format::open(sealer, key, sealed.value()) {
                    Some(entry) => found.push(entry),
                    None => lost = Some(format!("{key}: it is not what was sealed")),
                }
            }
            Ok(())
        };
        let database = self.database.as_ref().ok_or(Error::Closed)?;
        if let Err(error) = scan(database) {
            self.database = None;
            let error = storage_error(&error);
            self.backoff.failed(&error);
            return Err(error);
        }
        lost.map_or(Ok(found), |lost| Err(Error::Damaged(lost)))
    }

    /// Whether [`tidy`](Self::tidy) has work to do.
    pub fn is_untidy(&self) -> bool {
        self.doubt.is_some() || self.is_unconfirmed
    }

    /// Time until an attempt to write or to reopen the database is due.
    pub fn retry_after(&self) -> Duration {
        self.backoff.remaining()
    }

    /// Rolls back a commit in doubt, and confirms the last commit. Attempts it whether or not that is
    /// [due](Self::retry_after).
    pub fn tidy(&mut self) -> Result<(), Error> {
        if self.is_untidy() {
            self.reopen_now()?;
        }
        self.confirm()
    }

    fn reopen(&mut self) -> Result<(), Error> {
        if self.database.is_none() {
            self.backoff.check()?;
        }
        self.reopen_now()
    }

    /// Reopens the database if it is closed, and rolls back a commit in doubt.
    fn reopen_now(&mut self) -> Result<(), Error> {
        let settled = self.settle();
        if let Err(error) = &settled {
            self.backoff.failed(error);
        }
        settled
    }

    /// Confirms the last commit, so that a start can tell its damage from a torn commit. A failure leaves the
    /// records unchanged; the next commit reopens the database.
    fn confirm(&mut self) -> Result<(), Error> {
        if !self.is_unconfirmed {
            return Ok(());
        }
        let mut head = self.head;
        head.commits += 1;
        self.write(&[], head, Phases::Two)?;
        self.head = head;
        Ok(())
    }

    /// Group commit: applies batches in one transaction with one sync where possible. A batch that cannot be
    /// written does not fail the others.
    pub fn apply(&mut self, group: &[Batch]) -> Vec<Result<(), Error>> {
        match self.apply_together(group) {
            Ok(results) => results,
            Err(error) if group.len() < 2 => vec![Err(error)],
            Err(error) => group
                .iter()
                .map(|batch| {
                    let alone = self.apply_together(std::slice::from_ref(batch));
                    match (alone, &error) {
                        (Ok(mut results), _) => results.pop().unwrap_or(Err(Error::Closed)),
                        // The whole group is still in doubt: this batch may be durable.
                        (Err(_), Error::Unknown(_)) if self.doubt.is_some() => Err(error.clone()),
                        (Err(alone), _) => Err(alone),
                    }
                })
                .collect(),
        }
    }

    fn apply_together(&mut self, group: &[Batch]) -> Result<Vec<Result<(), Error>>, Error> {
        self.reopen()?;
        let mut after: HashMap<String, Option<u64>> = HashMap::new();
        let mut staged = Vec::new();
        let mut head = self.head;
        let results = group
            .iter()
            .map(|batch| {
                self.check(&batch.expected, &after)?;
                let ready: Vec<Staged> = (batch.changes.iter())
                    .map(|change| self.stage(change))
                    .collect::<Result<_, _>>()?;
                staged.extend(ready);
                for change in &batch.changes {
                    let is = matches!(change, Change::Put(_)).then(|| change.revision());
                    let key = change.key();
                    let was = after.get(key).copied();
                    let was = was.unwrap_or_else(|| self.revisions.get(key).copied());
                    head.records += u64::from(is.is_some());
                    head.records -= u64::from(was.is_some());
                    head.revision = head.revision.max(change.revision());
                    after.insert(key.to_owned(), is);
                }
                Ok(())
            })
            .collect();
        if staged.is_empty() {
            return Ok(results);
        }
        head.commits += 1;
        self.backoff.check()?;
        self.write(&staged, head, Phases::One)?;
        self.head = head;
        for (key, revision) in after {
            match revision {
                Some(revision) => self.revisions.insert(key, revision),
                None => self.revisions.remove(&key),
            };
        }
        Ok(results)
    }

    fn check(
        &self,
        expected: &Expected,
        after: &HashMap<String, Option<u64>>,
    ) -> Result<(), Error> {
        for (key, expected) in expected {
            let found = after.get(key).copied();
            let found = found.unwrap_or_else(|| self.revisions.get(key).copied());
            if found != *expected {
                return Err(Error::Conflict {
                    key: key.clone(),
                    expected: *expected,
                    found,
                });
            }
        }
        Ok(())
    }

    fn stage(&self, change: &Change) -> Result<Staged, Error> {
        let sealed = match change {
            Change::Put(entry) => Some(format::seal(&self.sealer, entry)?),
            Change::Remove { .. } => None,
        };
        Ok(Staged {
            key: change.key().to_owned(),
            sealed,
        })
    }

    /// Writes one transaction and syncs it. After an error none of it is durable, or [`settle`](Self::settle)
    /// rolls it back.
    fn write(&mut self, staged: &[Staged], head: Head, phases: Phases) -> Result<(), Error> {
        let database = self.database.as_ref().ok_or(Error::Closed)?;
        let mut before = Vec::new();
        let sealed = head.seal(&self.sealer)?;
        let Err(error) = write(database, staged, &sealed, phases, &mut before) else {
            self.is_unconfirmed = phases == Phases::One;
            self.backoff.succeeded();
            return Ok(());
        };
        let error = storage_error(&error);
        self.database = None;
        let commits = head.commits;
        if let Ok((database, found)) = open(self.opener.open(), &self.sealer) {
            self.database = Some(database);
            if found.commits == commits {
                self.is_unconfirmed = true;
                self.backoff.succeeded();
                return Ok(());
            }
            self.backoff.failed(&error);
            return Err(error);
        }
        self.backoff.failed(&error);
        if open(self.opener.peek(), &self.sealer).is_ok_and(|(_, found)| found.commits != commits) {
            return Err(error);
        }
        self.doubt = Some(Doubt { commits, before });
        Err(Error::Unknown(error.to_string()))
    }

    /// Reopens the database if it is closed, and rolls back a commit in doubt.
    fn settle(&mut self) -> Result<(), Error> {
        if self.database.is_some() {
            return Ok(());
        }
        let (opened, found) = open(self.opener.open(), &self.sealer)?;
        if let Some(doubted) = &self.doubt
            && found.commits == doubted.commits
        {
            let undone = Head {
                commits: found.commits + 1,
                ..self.head
            };
            // In reverse order, so that a key that changed twice gets its oldest value.
            let staged: Vec<Staged> = (doubted.before.iter().rev())
                .map(|(key, sealed)| Staged {
                    key: key.clone(),
                    sealed: sealed.clone(),
                })
                .collect();
            let sealed = undone.seal(&self.sealer)?;
            let written = write(&opened, &staged, &sealed, Phases::Two, &mut Vec::new());
            written.map_err(|error| storage_error(&error))?;
            self.backoff.succeeded();
            self.head = undone;
        } else {
            self.head.commits = found.commits;
        }
        self.doubt = None;
        self.database = Some(opened);
        Ok(())
    }
}

fn other(error: Error) -> redb::Error {
    redb::Error::Io(std::io::Error::other(error))
}
