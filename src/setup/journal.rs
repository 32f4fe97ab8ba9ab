//! The way back, on disk before each step.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::{JOURNAL, Step};
use crate::machine::Machine;

/// Steps that take back what was done, oldest first. One process at a time has it.
pub struct Journal {
    path: PathBuf,
    steps: Vec<Step>,
    _lock: File,
}

impl Journal {
    /// Reads it, if there is one.
    ///
    /// # Errors
    /// Without the right to, while another setup runs, or when it is damaged.
    pub fn open(machine: &Machine) -> Result<Self, String> {
        let path = machine.path(JOURNAL);
        let lock_path = path.with_extension("lock");
        let fail = |path: &PathBuf, error: std::io::Error| format!("{}: {error}", path.display());
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| fail(&lock_path, error))?;
        lock.try_lock()
            .map_err(|_| format!("another setup is under way ({})", lock_path.display()))?;
        let steps = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                format!(
                    "{}: {error}: it is damaged; remove it, or restart the machine",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(fail(&path, error)),
        };
        Ok(Self {
            path,
            steps,
            _lock: lock,
        })
    }

    /// What would take back all that was done.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Adds a step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note(&mut self, undo: Step) -> Result<(), String> {
        if undo != Step::Nothing {
            self.steps.push(undo);
        }
        self.write()
    }

    /// The last one has been done.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn forget_last(&mut self) -> Result<(), String> {
        self.steps.pop();
        self.write()
    }

    /// Nothing is left to take back.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(self) -> Result<(), String> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whole or not at all.
    fn write(&self) -> Result<(), String> {
        let new = self.path.with_extension("new");
        let text = serde_json::to_vec(&self.steps).map_err(|error| error.to_string())?;
        let written = File::create(&new)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&new, &self.path));
        written.map_err(|error| format!("{}: {error}", self.path.display()))
    }
}
