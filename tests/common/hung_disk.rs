//! A hung disk: an ext4 file system frozen by fsfreeze. Writes and syncs block until it is thawed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(program: &str, args: &[&str], path: &Path) {
    let status = Command::new(program).args(args).arg(path).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {args:?} {path:?}: {status}");
}

/// An ext4 file system in a loop-mounted file; unmounted on drop.
pub struct Disk(PathBuf);

impl Disk {
    /// Creates the file system in the file `image` and mounts it at the new directory `at`.
    pub fn new(image: &Path, at: PathBuf) -> Self {
        let file = std::fs::File::create(image).expect("a file");
        file.set_len(64 << 20).expect("the file can be extended");
        run("mkfs.ext4", &["-q"], image);
        std::fs::create_dir(&at).expect("a directory");
        let image = image.to_str().expect("UTF-8");
        run("mount", &["-o", "loop", image], &at);
        let owner = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&at, owner).expect("the permissions can be set");
        Self(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Keeps the disk frozen; thaws it on drop.
pub struct Frozen<'a>(&'a Disk);

impl<'a> Frozen<'a> {
    /// Freezes the disk.
    pub fn new(disk: &'a Disk) -> Self {
        run("fsfreeze", &["--freeze"], &disk.0);
        Self(disk)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze")
            .arg("--unfreeze")
            .arg(&self.0.0)
            .status();
    }
}
