//! The undo journal, written to disk before each step.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{JOURNAL, Step};
use crate::machine::Machine;

/// Undo steps, oldest first. Locked against other processes.
pub struct Journal {
    path: PathBuf,
    steps: Vec<Step>,
    _lock: File,
}

impl Journal {
    /// Opens and locks the journal, and reads it if it exists.
    ///
    /// # Errors
    /// Without permission, while another setup runs, or if the journal is damaged.
    pub fn open(machine: &Machine) -> Result<Self, String> {
        let path = machine.path(JOURNAL);
        let lock_path = path.with_extension("lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| refused(&lock_path, &error))?;
        lock.try_lock()
            .map_err(|_| format!("another setup is under way ({})", lock_path.display()))?;
        Ok(Self {
            path,
            steps: read(machine)?,
            _lock: lock,
        })
    }

    /// The undo steps of everything that was done.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Adds an undo step. For a device only the first one is kept: it restores the original state.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn note(&mut self, undo: Step) -> Result<(), String> {
        let device = undo.device();
        let is_known = device.is_some() && self.steps.iter().any(|step| step.device() == device);
        if undo != Step::Nothing && !is_known {
            self.steps.push(undo);
        }
        self.write()
    }

    /// Removes the last step, which has been undone.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn forget_last(&mut self) -> Result<(), String> {
        self.steps.pop();
        self.write()
    }

    /// Removes the journal: nothing is left to undo.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<(), String> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(format!("{}: {error}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Replaces the file atomically.
    fn write(&self) -> Result<(), String> {
        let new = self.path.with_extension("new");
        let text = serde_json::to_vec(&self.steps).map_err(|error| error.to_string())?;
        let written = File::create(&new)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&new, &self.path));
        written.map_err(|error| refused(&self.path, &error))
    }
}

/// Reads the steps without locking the journal.
///
/// # Errors
/// The journal cannot be read, or is damaged.
pub fn read(machine: &Machine) -> Result<Vec<Step>, String> {
    let path = machine.path(JOURNAL);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| {
            format!(
                "{}: {error}: it is damaged; remove it, or restart the machine",
                path.display()
            )
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// The error of a journal that cannot be written, with advice.
fn refused(path: &Path, error: &std::io::Error) -> String {
    let path = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "setup needs root (cannot write {path}): run it as root; --dry-run shows the commands"
        ),
        ErrorKind::ReadOnlyFilesystem => {
            format!("{path}: {error}: setup keeps its way back there; mount it writable")
        }
        _ => format!("{path}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_write_is_told_what_would_be_right() {
        let said = |number| {
            let error = std::io::Error::from_raw_os_error(number);
            refused(Path::new("/run/opi-spdk-setup.lock"), &error)
        };
        // EPERM, EACCES
        for number in [1, 13] {
            assert_eq!(
                said(number),
                "setup needs root (cannot write /run/opi-spdk-setup.lock): run it as root; --dry-run shows the commands"
            );
        }
        // EROFS
        assert!(said(30).ends_with("setup keeps its way back there; mount it writable"));
        // ENOSPC
        assert!(!said(28).contains("root"));
    }
}
