//! The records in a redb database, and what happens to it when its storage fails.
//!
//! redb refuses everything after one I/O error, so the database is opened again then, which also tells
//! whether the commit that failed has come through all the same:
//!
//! ```text
//!            write fails             opens: commit is there ──────────────► it has succeeded
//!   open ───────────────► closed ──► opens: commit is not there ──────────► it has failed
//!     ▲                     └──────► does not open: a copy tells that it is not there: it has failed;
//!     │                              else nobody knows, and a timer or the next call tries again:
//!     └── a commit that is found then is undone first
//! ```
//!
//! A commit waits for one sync: a start tells one that was torn by redb's checksums and goes back to the one
//! before, whose pages redb leaves alone. It could not tell a torn commit from a durable one that was damaged
//! later, so the last one is confirmed, by an empty commit in two phases, as soon as nothing follows it.

use std::collections::HashMap;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::fault::{Fault, storage_error};
use super::format::{self, FORMAT, HEAD, Head, META, Migration, RECORDS};
use super::seal::Sealer;
use super::transaction::{Phases, Staged, open, write};
use super::{Change, Entry, Error, Expected};

/// Memory for pages of the database.
const CACHE: usize = 16 << 20;

/// redb tells its repair callback this much progress before it goes back to the commit before the last, which
/// it does after a commit in one phase only, and less or more at every other step.
const FALLS_BACK: std::ops::Range<f64> = 0.1..0.5;

/// Opens the database, and opens it again after a failure.
pub(super) trait Opener {
    /// The database as it is now; nothing is made.
    fn open(&self) -> Result<Database, redb::Error>;

    /// The same to be read alone: where there is no room to open it, a copy.
    fn peek(&self) -> Result<Database, redb::Error> {
        self.open()
    }
}

/// Versions of the format, and what leads from one to the next.
#[derive(Clone, Copy)]
pub(super) struct Format {
    pub version: u32,
    pub migrations: &'static [Migration],
}

/// The one that this program writes.
pub(super) const CURRENT: Format = Format {
    version: format::VERSION,
    migrations: &format::MIGRATIONS,
};

/// Changes that belong together.
#[derive(Debug)]
pub(super) struct Batch {
    pub changes: Vec<Change>,
    pub expected: Expected,
}

/// The records.
pub(super) struct Engine<O> {
    opener: O,
    sealer: Sealer,
    database: Option<Database>,
    /// The revision of each record, as callers know it.
    revisions: HashMap<String, u64>,
    head: Head,
    doubt: Option<Doubt>,
    /// The last commit waits to be confirmed.
    is_unconfirmed: bool,
}

/// A commit that was answered as [`Error::Unknown`], and may have come through.
struct Doubt {
    commits: u64,
    before: Vec<(String, Option<Vec<u8>>)>,
}

/// What the database has.
pub(super) struct Loaded {
    pub head: Head,
    pub revisions: HashMap<String, u64>,
}

/// How all databases are opened: the checksum of every page is compared, and an older state is taken for the
/// last one only where the last commit was not confirmed.
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

/// Makes an empty state in an empty database.
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

/// Brings a database to the current format.
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

/// Reads and unseals everything.
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
    /// Opens a database and reads what it has.
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
        })
    }

    /// The highest revision ever.
    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// The records whose keys begin with `prefix`.
    pub fn scan(&mut self, prefix: &str) -> Result<Vec<Entry>, Error> {
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
        Self::settle(
            &self.opener,
            &mut self.database,
            &mut self.doubt,
            &mut self.head,
            sealer,
        )?;
        let database = self.database.as_ref().ok_or(Error::Closed)?;
        if let Err(error) = scan(database) {
            self.database = None;
            return Err(storage_error(&error));
        }
        lost.map_or(Ok(found), |lost| Err(Error::Damaged(lost)))
    }

    /// Whether [`tidy`](Self::tidy) has something to do.
    pub fn is_untidy(&self) -> bool {
        self.doubt.is_some() || self.is_unconfirmed()
    }

    /// Undoes what is in doubt, and confirms the last commit.
    pub fn tidy(&mut self) -> Result<(), Error> {
        if self.doubt.is_some() {
            self.reopen()?;
        }
        self.confirm()
    }

    fn reopen(&mut self) -> Result<(), Error> {
        Self::settle(
            &self.opener,
            &mut self.database,
            &mut self.doubt,
            &mut self.head,
            &self.sealer,
        )
    }

    fn is_unconfirmed(&self) -> bool {
        self.is_unconfirmed && self.database.is_some()
    }

    /// Has a start tell damage of the last commit from a commit that was cut off. What fails here has no
    /// effect on the records; the next commit opens the database again.
    fn confirm(&mut self) -> Result<(), Error> {
        if !self.is_unconfirmed() {
            return Ok(());
        }
        let mut head = self.head;
        head.commits += 1;
        self.write(&[], head, Phases::Two)?;
        self.head = head;
        Ok(())
    }

    /// Applies batches, together if it can be: they share what makes them durable. One that cannot be
    /// written takes no other with it.
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
                        // All of the group may be there.
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

    /// Writes and makes durable. After an error nothing of it is there, or [`settle`](Self::settle) will
    /// undo it.
    fn write(&mut self, staged: &[Staged], head: Head, phases: Phases) -> Result<(), Error> {
        let database = self.database.as_ref().ok_or(Error::Closed)?;
        let mut before = Vec::new();
        let sealed = head.seal(&self.sealer)?;
        let Err(error) = write(database, staged, &sealed, phases, &mut before) else {
            self.is_unconfirmed = phases == Phases::One;
            return Ok(());
        };
        self.database = None;
        let commits = head.commits;
        if let Ok((database, found)) = open(self.opener.open(), &self.sealer) {
            self.database = Some(database);
            if found.commits == commits {
                self.is_unconfirmed = true;
                return Ok(());
            }
            return Err(storage_error(&error));
        }
        if open(self.opener.peek(), &self.sealer).is_ok_and(|(_, found)| found.commits != commits) {
            return Err(storage_error(&error));
        }
        self.doubt = Some(Doubt { commits, before });
        Err(Error::Unknown(storage_error(&error).to_string()))
    }

    /// Opens the database if it is closed, and undoes what was answered as failed.
    fn settle(
        opener: &O,
        database: &mut Option<Database>,
        doubt: &mut Option<Doubt>,
        head: &mut Head,
        sealer: &Sealer,
    ) -> Result<(), Error> {
        if database.is_some() {
            return Ok(());
        }
        let (opened, found) = open(opener.open(), sealer)?;
        if let Some(doubted) = doubt.as_ref()
            && found.commits == doubted.commits
        {
            let undone = Head {
                commits: found.commits + 1,
                ..*head
            };
            // The oldest value of a key that changed twice is the last to be written.
            let staged: Vec<Staged> = (doubted.before.iter().rev())
                .map(|(key, sealed)| Staged {
                    key: key.clone(),
                    sealed: sealed.clone(),
                })
                .collect();
            let sealed = undone.seal(sealer)?;
            let written = write(&opened, &staged, &sealed, Phases::Two, &mut Vec::new());
            written.map_err(|error| storage_error(&error))?;
            *head = undone;
        } else {
            head.commits = found.commits;
        }
        *doubt = None;
        *database = Some(opened);
        Ok(())
    }
}

fn other(error: Error) -> redb::Error {
    redb::Error::Io(std::io::Error::other(error))
}
