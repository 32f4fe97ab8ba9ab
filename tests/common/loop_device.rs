//! Loop devices.

use std::path::Path;
use std::process::Command;

/// A loop device; detached on drop.
pub struct Loop(pub String);

impl Loop {
    /// Creates a loop device over `file` with this block size.
    pub fn over(file: &Path, block_size: u32) -> Self {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block_size.to_string()])
            .arg(file)
            .output()
            .expect("losetup runs");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "losetup failed: {said}");
        Self(String::from_utf8_lossy(&made.stdout).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
