//! The machine as its files describe it (`/proc`, `/sys`): what `doctor`, `setup` and the checks before
//! SPDK's start look at. The root is a parameter, so that a tree of files can stand for a machine.

pub mod cgroup;
pub mod cpus;
pub mod hugepages;
pub mod mounts;
pub mod pci;
#[cfg(test)]
pub(crate) mod tree;

use std::path::{Path, PathBuf};

/// A machine, by the directory that its files are under.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Self::at("/")
    }

    /// The machine whose files are under `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Whether it is this machine, so that system calls tell of it too.
    pub fn is_here(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where the file with this absolute path is.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.root
            .join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// A file's text without white space at its ends; `None` if it cannot be read.
    pub fn text(&self, absolute: impl AsRef<Path>) -> Option<String> {
        let text = std::fs::read(self.path(absolute)).ok()?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// A file that holds one number.
    pub fn number(&self, absolute: impl AsRef<Path>) -> Option<u64> {
        self.text(absolute)?.parse().ok()
    }

    /// Whether there is such a file or directory.
    pub fn has(&self, absolute: impl AsRef<Path>) -> bool {
        self.path(absolute).exists()
    }

    /// Names in a directory, sorted; none if it cannot be read.
    pub fn names(&self, absolute: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(absolute));
        let mut names: Vec<_> = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// The last component of what a symbolic link points to.
    pub fn link_name(&self, absolute: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.path(absolute)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// The value of a line `key: value` of a file such as `/proc/meminfo`.
    pub fn field(&self, absolute: impl AsRef<Path>, key: &str) -> Option<String> {
        let text = self.text(absolute)?;
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        })
    }

    /// The same for a line that begins with a number, such as `MemAvailable: 12 kB`.
    pub fn field_number(&self, absolute: impl AsRef<Path>, key: &str) -> Option<u64> {
        let value = self.field(absolute, key)?;
        value.split_whitespace().next()?.parse().ok()
    }
}
