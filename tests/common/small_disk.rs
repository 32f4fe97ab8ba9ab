//! A file system that is soon full.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small tmpfs, unmounted when dropped. Needs root.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it at a directory that does not exist yet, accessible only to its owner.
    pub fn new(at: PathBuf, mib: u32) -> Self {
        std::fs::create_dir(&at).expect("a directory");
        let options = format!("size={mib}m,mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        let status = mount.arg(&at).status().expect("mount(8)");
        assert!(status.success(), "{status}: the tests need root");
        Self(at)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Allocates all remaining room; returns the file that has it.
    pub fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let room = rustix::fs::statvfs(&self.0).expect("the file system is mounted");
        let rest = usize::try_from(room.f_bavail * room.f_frsize).expect("little");
        std::fs::write(&filler, vec![1; rest]).expect("the file fits");
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
