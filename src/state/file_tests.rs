//! Tests of failed syncs: Linux marks dirty pages clean after a failed fsync, so the whole file must be
//! rewritten before it is used again.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::pipe::pipe;

use super::*;
use crate::state::StateKey;

fn sealer() -> Sealer {
    Sealer::new(&StateKey::from([5; 32]))
}

/// Creates a state file with a hole, a range without allocated blocks, which stands for data that was never
/// written.
fn with_a_hole() -> (tempfile::TempDir, StateFile) {
    let dir = tempfile::tempdir().unwrap();
    let file = StateFile::in_dir(dir.path());
    file.create(&sealer()).unwrap();
    let whole = std::fs::read(&file.path).unwrap();
    // A sparse copy that leaves out pages of zeroes.
    let sparse = File::create(&file.path).unwrap();
    for (at, page) in (0..).step_by(4096).zip(whole.chunks(4096)) {
        if page.iter().any(|byte| *byte != 0) {
            sparse.write_all_at(page, at).unwrap();
        }
    }
    sparse.set_len(whole.len() as u64).unwrap();
    sparse.sync_all().unwrap();
    (dir, file)
}

/// Whether the file has no holes.
fn is_written(file: &StateFile) -> bool {
    let metadata = std::fs::metadata(&file.path).unwrap();
    metadata.blocks() * 512 >= metadata.len()
}

#[test]
fn after_a_failed_sync_all_of_the_file_is_written_before_it_is_used() {
    let (_dir, file) = with_a_hole();
    assert!(!is_written(&file), "there is a hole at first");
    drop(file.open().unwrap());
    assert!(!is_written(&file), "a file that is synced is left alone");
    let before = std::fs::read(&file.path).unwrap();
    file.is_unsynced.store(true, Ordering::Release);
    let database = file.open().unwrap();
    assert!(is_written(&file));
    assert!(!file.is_unsynced.load(Ordering::Acquire));
    drop(database);
    let after = std::fs::read(&file.path).unwrap();
    assert_eq!(after.len(), before.len());
    file.check(&sealer(), drop).unwrap();
}

#[test]
fn a_sync_that_fails_is_remembered_until_the_file_is_written_anew() {
    let (_dir, file) = with_a_hole();
    // fsync fails on a pipe.
    let (_reader, writer) = pipe().unwrap();
    let unsynced = File::from(writer.as_fd().try_clone_to_owned().unwrap());
    let backend = Reserving {
        file: unsynced.try_clone().unwrap(),
        inner: FileBackend::new(unsynced).unwrap(),
        is_unsynced: Arc::clone(&file.is_unsynced),
        counters: file.counters(),
    };
    assert!(backend.sync_data().is_err());
    assert!(file.is_unsynced.load(Ordering::Acquire));
    drop(file.open().unwrap());
    assert!(is_written(&file));
    assert!(!file.is_unsynced.load(Ordering::Acquire));
}

#[test]
fn a_file_that_cannot_be_written_anew_is_not_used() {
    let full = File::options().read(true).write(true).open("/dev/full");
    assert!(write_again(&full.unwrap()).is_err(), "no room");
}
