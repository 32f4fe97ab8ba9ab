//! Block devices over files.

use std::path::Path;
use std::process::Command;

/// A block device, gone on drop.
pub struct Loop(pub String);

impl Loop {
    /// Over this file, with blocks of this size.
    pub fn over(file: &Path, block_size: u32) -> Self {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block_size.to_string()])
            .arg(file)
            .output()
            .expect("losetup runs");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "a loop device is needed: {said}");
        Self(String::from_utf8_lossy(&made.stdout).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
