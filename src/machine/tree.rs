//! A tree of files that represents a machine, for tests.

use std::path::PathBuf;

use super::Machine;

/// The tree, removed on drop.
pub struct Tree(tempfile::TempDir);

impl Tree {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub fn path(&self, absolute: &str) -> PathBuf {
        self.0.path().join(absolute.trim_start_matches('/'))
    }

    pub fn write(&self, absolute: &str, text: &str) {
        let path = self.path(absolute);
        std::fs::create_dir_all(path.parent().expect("absolute")).expect("a directory");
        std::fs::write(path, text).expect("written");
    }

    pub fn dir(&self, absolute: &str) {
        std::fs::create_dir_all(self.path(absolute)).expect("a directory");
    }

    /// Creates a link whose target is in the tree.
    pub fn link(&self, absolute: &str, target: &str) {
        let path = self.path(absolute);
        std::fs::create_dir_all(path.parent().expect("absolute")).expect("a directory");
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(self.path(target), path).expect("a link");
    }

    #[allow(dead_code, reason = "for the tests of setup")]
    pub fn read(&self, absolute: &str) -> String {
        std::fs::read_to_string(self.path(absolute)).unwrap_or_default()
    }

    pub fn machine(&self) -> Machine {
        Machine::at(self.0.path())
    }
}
