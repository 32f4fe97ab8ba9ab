//! The state file: created atomically, verified before it is opened, and grown with allocated blocks only.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Entry;
use super::counters::Counters;
use super::engine::{self, CURRENT, Engine, Opener};
use super::fault::{Fault, storage_error};
use super::leaf::damaged_records;
use super::seal::Sealer;

/// Name of the file in the state directory.
pub(super) const FILE: &str = "state.redb";

/// Magic number of a redb database.
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

/// A database file.
pub(super) struct StateFile {
    path: PathBuf,
    /// A sync failed, and the file has not been rewritten and synced since.
    is_unsynced: Arc<AtomicBool>,
    counters: Arc<Counters>,
}

impl StateFile {
    pub fn in_dir(dir: &Path) -> Self {
        Self::at(dir.join(FILE))
    }

    fn at(path: PathBuf) -> Self {
        Self {
            path,
            is_unsynced: Arc::default(),
            counters: Arc::default(),
        }
    }

    /// Returns the counters of the file.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Whether the file exists. The first start creates it.
    pub fn exists(&self) -> Result<bool, String> {
        self.path
            .try_exists()
            .map_err(|error| self.line(&error.to_string()))
    }

    /// Creates an empty state, atomically.
    pub fn create(&self, sealer: &Sealer) -> Result<(), String> {
        let unfinished = Self::at(self.path.with_extension("new"));
        let make = || -> Result<(), redb::Error> {
            match std::fs::remove_file(&unfinished.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            let mut options = File::options();
            options.read(true).write(true).create_new(true).mode(0o600);
            let file = options.open(&unfinished.path)?;
            let database = unfinished.database(file)?;
            engine::initialize(&database, sealer, CURRENT)?;
            database.close()?;
            File::open(&unfinished.path)?.sync_all()?;
            std::fs::rename(&unfinished.path, &self.path)?;
            let dir = self.path.parent().unwrap_or(Path::new("."));
            Ok(File::open(dir)?.sync_all()?)
        };
        make().map_err(|error| self.line(&storage_error(&error).to_string()))
    }

    /// Verifies the whole file without modifying it.
    pub fn check(&self, sealer: &Sealer, each: impl FnMut(Entry)) -> Result<u64, String> {
        let copy = self.copy()?;
        let last_read = Arc::clone(&copy.last_read);
        // redb promises not to panic on a file only as far as its checksums cover it.
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let opened = engine::builder().create_with_backend(copy);
            let database = opened.map_err(redb::Error::from)?;
            engine::migrate(&database, sealer, CURRENT)?;
            engine::load(&database, sealer, each).map(|loaded| loaded.head.revision)
        }));
        let panicked = |_| Err(Fault::Corrupt("its pages contradict each other".to_owned()));
        checked.unwrap_or_else(panicked).map_err(|fault| {
            let last_read = last_read.lock().clone();
            self.fault(&self.located(fault, sealer, last_read))
        })
    }

    /// Adds the places of a damage that a checksum shows: the page that was read last, since redb ends at the first page
    /// that is not what its checksum says, and the damaged records in it.
    fn located(&self, fault: Fault, sealer: &Sealer, last_read: Range<u64>) -> Fault {
        let Fault::Corrupt(what) = fault else {
            return fault;
        };
        let Some(copy) = (self.copy().ok()).filter(|_| is_checksum_fault(&what)) else {
            return Fault::Corrupt(what);
        };
        let length = copy.content.read().len();
        let mut places = vec![match last_read.is_empty() {
            true => format!("{what}, of {length} bytes"),
            false => format!(
                "{what}, at bytes {} to {} of {length}",
                last_read.start,
                last_read.end - 1
            ),
        }];
        let content = copy.content.read();
        let length = usize::try_from(last_read.end - last_read.start).ok();
        let page = length.and_then(|length| content.get(range(last_read.start, length)?));
        places.extend(page.map_or_else(Vec::new, |page| damaged_records(page, sealer)));
        Fault::Damaged(places)
    }

    /// Opens the file for changes.
    pub fn start(self, sealer: Sealer) -> Result<Engine<Self>, String> {
        let path = self.path.clone();
        let line = |fault: &Fault| Self::at(path.clone()).fault(fault);
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o600))
            .map_err(|error| self.line(&error.to_string()))?;
        Engine::start(self, sealer, CURRENT).map_err(|fault| line(&fault))
    }

    fn database(&self, file: File) -> Result<Database, redb::Error> {
        self.counters.set_bytes(file.metadata()?.len());
        let backend = Reserving {
            file: file.try_clone()?,
            is_unsynced: Arc::clone(&self.is_unsynced),
            counters: self.counters(),
            inner: FileBackend::new(file)?,
        };
        Ok(engine::builder().create_with_backend(backend)?)
    }

    fn copy(&self) -> Result<Copy, String> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            if !file.metadata()?.is_file() {
                return Err(std::io::Error::other("is not a file"));
            }
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            Ok(content)
        };
        let content = read().map_err(|error| self.line(&error.to_string()))?;
        if content.is_empty() {
            return Err(self.damaged("it is empty"));
        }
        if !content.starts_with(MAGIC) {
            return Err(
                self.line("is no state of opi-spdk: move it away, or choose another --state-dir")
            );
        }
        Ok(Copy::of(content))
    }

    fn fault(&self, fault: &Fault) -> String {
        match fault {
            Fault::WrongKey => self.line(
                "was sealed with another key: give that one with --state-key-file, or restore the file \
                 state-key beside it",
            ),
            Fault::Format(what) => self.line(what),
            Fault::Damaged(places) => self.damaged(&places.join(", ")),
            Fault::Corrupt(what) => self.damaged(what),
            Fault::Storage(error) => self.line(&error.to_string()),
        }
    }

    fn damaged(&self, what: &str) -> String {
        self.line(&format!(
            "is damaged ({what}): restore it from a backup, or move it away and import an export with \
             opi-spdk state import; opi-spdk state check tells all of it"
        ))
    }

    fn line(&self, what: &str) -> String {
        format!("state-dir {}: {what}", self.path.display())
    }
}

impl Opener for StateFile {
    fn open(&self) -> Result<Database, redb::Error> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        if file.metadata()?.len() == 0 {
            return Err(redb::Error::Corrupted("it is empty".to_owned()));
        }
        if self.is_unsynced.load(Ordering::Acquire) {
            write_again(&file)?;
            self.is_unsynced.store(false, Ordering::Release);
        }
        self.database(file)
    }

    /// Reads a copy: reopening after a failure may need space, which a full disk does not have.
    fn peek(&self) -> Result<Database, redb::Error> {
        let copy = Copy::of(std::fs::read(&self.path)?);
        Ok(engine::builder().create_with_backend(copy)?)
    }
}

/// Rewrites and syncs the whole file. After a failed fsync Linux marks the dirty pages clean: reads still return
/// them, and no later fsync writes them. Rewriting all that reads return makes every page dirty again, so that
/// the sync makes it durable.
fn write_again(file: &File) -> std::io::Result<()> {
    let mut part = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut part, at)?;
        if read == 0 {
            return file.sync_all();
        }
        file.write_all_at(&part[..read], at)?;
        at += read as u64;
    }
}

/// File backend that allocates blocks as it grows, so that a full disk is reported by the growth, not by a later
/// write into a hole.
#[derive(Debug)]
struct Reserving {
    file: File,
    inner: FileBackend,
    is_unsynced: Arc<AtomicBool>,
    counters: Arc<Counters>,
}

type Edge = std::ops::Bound<u64>;

impl StorageBackend for Reserving {
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let now = self.inner.len()?;
        if len > now {
            // KEEP_SIZE makes the growth atomic: without it, ext4 leaves a file longer by the blocks it could
            // allocate, and redb does not open a file of such a length.
            match fallocate(&self.file, FallocateFlags::KEEP_SIZE, now, len - now) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => {
                    // Releases the allocated blocks. The error to report is that of the allocation.
                    let _ = self.inner.set_len(now);
                    return Err(error.into());
                }
            }
        }
        self.inner.set_len(len)?;
        self.counters.set_bytes(len);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let begun = Instant::now();
        let synced = self.inner.sync_data();
        self.counters.add_sync(begun.elapsed());
        if synced.is_err() {
            self.is_unsynced.store(true, Ordering::Release);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> std::io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

/// Copy of a file in memory, for checks that must not modify the file.
struct Copy {
    content: RwLock<Vec<u8>>,
    /// Bytes that were read last.
    last_read: Arc<Mutex<Range<u64>>>,
}

impl Copy {
    fn of(content: Vec<u8>) -> Self {
        Self {
            content: RwLock::new(content),
            last_read: Arc::default(),
        }
    }
}

impl std::fmt::Debug for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Copy")
    }
}

/// Whether redb found a page that is not what its checksum says. Its error is one of two texts; `file_tests` notices a
/// change of the one that a flipped byte gives.
fn is_checksum_fault(what: &str) -> bool {
    matches!(
        what,
        "Primary is corrupted despite 2-phase commit"
            | "Failed to repair database. All roots are corrupted"
    )
}

fn ends_too_soon() -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, "it ends too soon")
}

fn range(offset: u64, length: usize) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(length)?)
}

impl StorageBackend for Copy {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.content.read().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        *self.last_read.lock() = offset..offset.saturating_add(out.len() as u64);
        let content = self.content.read();
        let part = range(offset, out.len()).and_then(|range| content.get(range));
        out.copy_from_slice(part.ok_or_else(ends_too_soon)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let len = usize::try_from(len).map_err(|_| ErrorKind::FileTooLarge)?;
        self.content.write().resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut content = self.content.write();
        let part = range(offset, data.len()).and_then(|range| content.get_mut(range));
        part.ok_or_else(ends_too_soon)?.copy_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
