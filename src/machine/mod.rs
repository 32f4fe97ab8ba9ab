//! The machine as described by `/proc` and `/sys`, for `doctor`, `setup` and the preflight checks. The root is a
//! parameter, so that tests can use a tree of files.

pub mod cgroup;
pub mod cpus;
pub mod hugepages;
pub mod kernel_users;
pub mod mounts;
pub mod openers;
pub mod pci;
#[cfg(test)]
pub(crate) mod tree;

use std::path::{Path, PathBuf};

/// A machine, given by the root of its files.
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

    /// Whether this is the running machine, so that system calls apply to it too.
    pub fn is_here(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Resolves a path under the root.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        // A relative path of a setting is relative to the working directory.
        if self.is_here() {
            return absolute.to_owned();
        }
        self.root
            .join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// The trimmed text of a file; `None` if it cannot be read.
    pub fn text(&self, absolute: impl AsRef<Path>) -> Option<String> {
        let text = std::fs::read(self.path(absolute)).ok()?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// The number in a file.
    pub fn number(&self, absolute: impl AsRef<Path>) -> Option<u64> {
        self.text(absolute)?.parse().ok()
    }

    /// Whether a file or directory exists.
    pub fn has(&self, absolute: impl AsRef<Path>) -> bool {
        self.path(absolute).exists()
    }

    /// Sorted names of a directory's entries; empty if it cannot be read.
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

    /// The last component of a symbolic link's target.
    pub fn link_name(&self, absolute: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.path(absolute)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// The value of a line `key: value` in a file such as `/proc/meminfo`.
    pub fn field(&self, absolute: impl AsRef<Path>, key: &str) -> Option<String> {
        let text = self.text(absolute)?;
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        })
    }

    /// The leading number of such a value: `MemAvailable: 12 kB`.
    pub fn field_number(&self, absolute: impl AsRef<Path>, key: &str) -> Option<u64> {
        let value = self.field(absolute, key)?;
        value.split_whitespace().next()?.parse().ok()
    }
}
