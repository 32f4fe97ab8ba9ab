//! A disk that does not answer: an ext4 file system that is frozen. Its writes and syncs wait until it is
//! thawed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(program: &str, args: &[&str], path: &Path) {
    let status = Command::new(program).args(args).arg(path).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {args:?} {path:?}: {status}");
}

/// An ext4 file system in a file, until the end of the test.
pub struct Disk(PathBuf);

impl Disk {
    /// In the file `image`, mounted at the new directory `at`.
    pub fn new(image: &Path, at: PathBuf) -> Self {
        let file = std::fs::File::create(image).expect("a file");
        file.set_len(64 << 20).expect("there is room");
        run("mkfs.ext4", &["-q"], image);
        std::fs::create_dir(&at).expect("a directory");
        let image = image.to_str().expect("UTF-8");
        run("mount", &["-o", "loop", image], &at);
        let owner = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&at, owner).expect("it is ours");
        Self(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// It does not answer for as long as this is kept.
pub struct Frozen<'a>(&'a Disk);

impl<'a> Frozen<'a> {
    /// From now on.
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
