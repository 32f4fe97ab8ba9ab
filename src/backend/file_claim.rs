//! Exclusive ownership of a file or block device by one volume: a second writer would corrupt its data.
//!
//! A claim holds the file open for the lifetime of its volume. It excludes:
//! - other volumes of this process, under any name of the file: device and inode are compared, and the device number
//!   of a block device;
//! - other processes: a regular file is locked by flock(2) and by an open-file-description lock, which QEMU takes; a
//!   block device is opened with O_EXCL, which mount, LVM, md and swap respect.

use std::collections::HashMap;
use std::fs::{File, Metadata, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use rustix::fs::{OFlags, major, minor};

use crate::error::Error;

/// Identity of a file, independent of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FileId {
    /// A regular file: device and inode.
    Inode(u64, u64),
    /// A block device by its device number, independent of the device node.
    Device(u64),
}

impl FileId {
    /// Returns the identity of the file that the metadata is of.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Self::Device(metadata.rdev())
        } else {
            Self::Inode(metadata.dev(), metadata.ino())
        }
    }
}

/// Exclusive claim of a volume on a file; released on drop.
#[derive(Debug)]
pub struct Claim {
    owner: String,
    path: String,
    id: FileId,
    /// Held open and locked for the lifetime of the claim.
    file: File,
}

/// All claims of the process, since locks and descriptors belong to the process. The mutex is never held during a file
/// system call: one unresponsive file system would block every other claim.
static CLAIMS: LazyLock<Mutex<HashMap<FileId, Slot>>> = LazyLock::new(Mutex::default);

enum Slot {
    /// An owner's open is in flight.
    Opening {
        owner: String,
        path: String,
    },
    Claimed(Weak<Claim>),
}

/// Reservation of a file while it is being opened; dropping it frees the file.
struct Opening(Option<FileId>);

impl Opening {
    fn claimed(mut self, claim: &Arc<Claim>) {
        self.0 = None;
        let slot = Slot::Claimed(Arc::downgrade(claim));
        let before = CLAIMS.lock().insert(claim.id, slot);
        drop(before);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            let before = CLAIMS.lock().remove(&id);
            drop(before);
        }
    }
}

/// The conflicting holder of a file.
enum Found {
    Claim(Arc<Claim>),
    Opening { owner: String, path: String },
}

impl Claim {
    /// Claims the file for the volume `owner`. Idempotent: a second claim by the same owner returns the first. Blocks
    /// on the file system.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the file cannot be opened, FAILED_PRECONDITION that names the current owner, UNAVAILABLE
    /// while an earlier call of the same owner still waits for the file system.
    pub(crate) fn take(owner: &str, path: &str) -> Result<Arc<Self>, Error> {
        Self::take_by(owner, path, open)
    }

    fn take_by(
        owner: &str,
        path: &str,
        open: impl FnOnce(&str, FileId) -> Result<File, Refused>,
    ) -> Result<Arc<Self>, Error> {
        let bad_file =
            |error: std::io::Error| Error::invalid("filename", format!("{path:?}: {error}"));
        let id = FileId::of(&std::fs::metadata(path).map_err(bad_file)?);
        let opening = match Self::reserve(owner, path, id) {
            Ok(opening) => opening,
            Err(Found::Claim(claim)) if claim.owner == owner => return Ok(claim),
            Err(Found::Claim(claim)) => return Err(had_by(path, &claim.owner, &claim.path)),
            Err(Found::Opening { owner: other, .. }) if other == owner => {
                let what = format!("filename: {path:?} is still being opened: try again");
                return Err(Error::Unavailable(what));
            }
            Err(Found::Opening { owner, path: known }) => return Err(had_by(path, &owner, &known)),
        };
        let file = open(path, id).map_err(|refused| match refused {
            Refused::Error(error) => bad_file(error),
            Refused::Held => in_use(path, &holder(id)),
        })?;
        // Race: the path may have been replaced between stat and open.
        let metadata = file.metadata().map_err(bad_file)?;
        if FileId::of(&metadata) != id {
            return Err(in_use(path, "somebody who is replacing it"));
        }
        if let Some(device) = loop_device_on(id) {
            return Err(in_use(path, &format!("the loop device {device}")));
        }
        let claim = Arc::new(Self {
            owner: owner.to_owned(),
            path: path.to_owned(),
            id,
            file,
        });
        opening.claimed(&claim);
        Ok(claim)
    }

    /// Reserves the file for the volume, or returns the conflicting holder.
    fn reserve(owner: &str, path: &str, id: FileId) -> Result<Opening, Found> {
        let mut claims = CLAIMS.lock();
        match claims.get(&id) {
            Some(Slot::Opening { owner, path }) => {
                let (owner, path) = (owner.clone(), path.clone());
                return Err(Found::Opening { owner, path });
            }
            // Dropping the last reference locks `CLAIMS`, so the reference is returned to the caller instead of being
            // dropped here.
            Some(Slot::Claimed(claim)) => {
                if let Some(claim) = claim.upgrade() {
                    return Err(Found::Claim(claim));
                }
            }
            None => {}
        }
        let (owner, path) = (owner.to_owned(), path.to_owned());
        claims.insert(id, Slot::Opening { owner, path });
        Ok(Opening(Some(id)))
    }

    /// Returns whether this volume holds the claim on this file.
    pub(crate) fn is_held(owner: &str, id: FileId) -> bool {
        let claim = match CLAIMS.lock().get(&id) {
            Some(Slot::Claimed(claim)) => claim.upgrade(),
            _ => None,
        };
        claim.is_some_and(|claim| claim.owner == owner)
    }
}

impl super::Held for Arc<Claim> {
    fn path(&self) -> Option<&str> {
        Some(&self.path)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Unlocked explicitly: a child process that was just forked may keep the descriptor open for a moment.
        if let FileId::Inode(..) = self.id {
            let _ = self.file.unlock();
            let _ = spdk::file_lock::unlock(&self.file);
        }
        let mut claims = CLAIMS.lock();
        // Race: a new claim may have been registered since the last reference to this one was dropped.
        if let Some(Slot::Claimed(claim)) = claims.get(&self.id)
            && claim.strong_count() == 0
        {
            claims.remove(&self.id);
        }
    }
}

fn had_by(path: &str, owner: &str, known_as: &str) -> Error {
    let same = match known_as == path {
        true => String::new(),
        false => format!(", where it is called {known_as:?}"),
    };
    in_use(path, &format!("the AioVolume {owner:?}{same}"))
}

fn in_use(path: &str, user: &str) -> Error {
    let message = format!("filename: {path:?} is in use by {user}: a file belongs to one volume");
    Error::failed_precondition(path, message)
}

enum Refused {
    /// Locked or opened exclusively by another process.
    Held,
    Error(std::io::Error),
}

/// Opens the file and locks it against other processes.
fn open(path: &str, id: FileId) -> Result<File, Refused> {
    let mut options = File::options();
    options.read(true).write(true);
    if let FileId::Device(_) = id {
        options.custom_flags(OFlags::EXCL.bits().cast_signed());
    }
    let file = options.open(path).map_err(|error| match error.kind() {
        ErrorKind::ResourceBusy | ErrorKind::ExecutableFileBusy => Refused::Held,
        _ => Refused::Error(error),
    })?;
    if let FileId::Device(_) = id {
        return Ok(file);
    }
    // A file system without lock support excludes nobody: continue without the lock.
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(Refused::Held),
        Err(TryLockError::Error(error)) => tracing::debug!(path, %error, "no flock"),
        Ok(()) => {}
    }
    match spdk::file_lock::try_lock_whole(&file) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::PermissionDenied
            ) =>
        {
            return Err(Refused::Held);
        }
        Err(error) => tracing::debug!(path, %error, "no lock of an open file"),
        Ok(()) => {}
    }
    Ok(file)
}

/// Describes the holder of a file or device that could not be claimed, as far as the system reports it.
fn holder(id: FileId) -> String {
    let device = match id {
        FileId::Device(device) => mount_of(device)
            .map(|place| format!("the file system that is mounted at {place:?}"))
            .or_else(|| kernel_holder(device)),
        FileId::Inode(..) => None,
    };
    device
        .or_else(|| swap_on(id).then(|| "swap".to_owned()))
        .or_else(|| process_with(id))
        .unwrap_or_else(|| "another process".to_owned())
}

/// Returns the mount point of a device or of one of its partitions.
fn mount_of(device: u64) -> Option<String> {
    let mut numbers = vec![numbers(device)];
    let partitions = entries(&Path::new("/sys/dev/block").join(&numbers[0]));
    numbers.extend(partitions.filter_map(|part| {
        let text = std::fs::read_to_string(part.join("dev")).ok()?;
        part.join("partition")
            .exists()
            .then(|| text.trim().to_owned())
    }));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let of = fields.next()?;
        let place = fields.nth(1)?;
        numbers.iter().any(|n| n == of).then(|| place.to_owned())
    })
}

/// Returns the device that the kernel has stacked on this one: LVM, RAID or multipath.
fn kernel_holder(device: u64) -> Option<String> {
    let holders = Path::new("/sys/dev/block")
        .join(numbers(device))
        .join("holders");
    let holder = entries(&holders).next()?;
    Some(format!("/dev/{}", holder.file_name()?.to_string_lossy()))
}

fn numbers(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

fn swap_on(id: FileId) -> bool {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut paths = swaps
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    paths.any(|path| is(Path::new(path), id))
}

/// Returns the loop device backed by the file, which would write to it concurrently.
fn loop_device_on(id: FileId) -> Option<String> {
    entries(Path::new("/sys/block")).find_map(|device| {
        let backing = std::fs::read_to_string(device.join("loop/backing_file")).ok()?;
        let name = device.file_name()?.to_string_lossy().into_owned();
        is(Path::new(backing.trim_end()), id).then(|| format!("/dev/{name}"))
    })
}

/// Returns another process that has the file open.
fn process_with(id: FileId) -> Option<String> {
    let own = std::process::id().to_string();
    entries(Path::new("/proc")).find_map(|process| {
        let pid = process.file_name()?.to_str()?.to_owned();
        if pid == own || !pid.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let has_it = entries(&process.join("fd")).any(|fd| is(&fd, id));
        has_it.then(|| {
            let command = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            format!("process {pid} ({})", command.trim())
        })
    })
}

fn is(path: &Path, id: FileId) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| FileId::of(&metadata) == id)
}

fn entries(dir: &Path) -> impl Iterator<Item = std::path::PathBuf> + use<> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_owner_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("file"), [0; 512]).unwrap();
        std::fs::hard_link(path("file"), path("hard")).unwrap();
        std::os::unix::fs::symlink(path("file"), path("soft")).unwrap();

        let claim = Claim::take("a", &path("file")).unwrap();
        let again = Claim::take("a", &path("soft")).unwrap();
        assert!(Arc::ptr_eq(&claim, &again));
        for name in ["file", "hard", "soft"] {
            let error = Claim::take("b", &path(name)).unwrap_err().to_string();
            assert!(error.contains("in use by the AioVolume \"a\""), "{error}");
            assert_eq!(error.contains("called"), name != "file", "{error}");
        }
        drop((claim, again));
        Claim::take("b", &path("hard")).unwrap();
    }

    #[test]
    fn a_file_that_does_not_open_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for name in ["dead", "alive"] {
            std::fs::write(path(name), [0; 512]).unwrap();
        }
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (free, waits) = std::sync::mpsc::channel::<()>();
        let dead = path("dead");
        let stuck = std::thread::spawn(move || {
            Claim::take_by("a", &dead, |path, id| {
                begun.send(()).unwrap();
                let _ = waits.recv();
                open(path, id)
            })
        });
        has_begun.recv().unwrap();
        drop(Claim::take("b", &path("alive")).unwrap());
        let again = Claim::take("a", &path("dead")).unwrap_err();
        assert!(matches!(again, Error::Unavailable(_)), "{again}");
        let other = Claim::take("b", &path("dead")).unwrap_err().to_string();
        assert!(other.contains("in use by the AioVolume \"a\""), "{other}");
        drop(free);
        let claim = stuck.join().unwrap().unwrap();
        assert!(Claim::is_held("a", claim.id));
        drop(claim);
        drop(Claim::take("b", &path("dead")).unwrap());
        let refused = |_: &str, _| Err(Refused::Held);
        Claim::take_by("b", &path("dead"), refused).unwrap_err();
        Claim::take("a", &path("dead")).expect("a failed claim is none");
    }

    #[test]
    fn a_lock_of_somebody_else_is_respected_and_its_holder_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let text = path.to_str().unwrap();
        std::fs::write(&path, [0; 512]).unwrap();
        let mut child = std::process::Command::new("flock")
            .args(["--exclusive", text, "-c", "echo locked; read _"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut said).unwrap();
        let error = Claim::take("a", text).unwrap_err().to_string();
        assert!(error.contains("in use by process "), "{error}");
        drop(child.stdin.take());
        child.wait().unwrap();
        Claim::take("a", text).unwrap();

        let open_file = File::options().read(true).write(true).open(&path).unwrap();
        spdk::file_lock::try_lock_whole(&open_file).unwrap();
        assert!(Claim::take("a", text).is_err(), "as QEMU locks");
    }
}
