//! Tests of failed syncs: Linux marks dirty pages clean after a failed fsync, so the whole file must be
//! rewritten before it is used again.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::pipe::pipe;

use super::*;
use crate::state::StateKey;
use crate::state::engine::Batch;
use crate::state::tests::put;

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

#[test]
fn a_damaged_page_is_named_by_its_bytes_and_its_records_by_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let of = || StateFile::in_dir(dir.path());
    of().create(&sealer()).unwrap();
    let mut engine = of().start(sealer()).unwrap();
    let changes = (1..=300).map(|at| put(&format!("nullVolumes/n{at:03}"), at));
    let batch = Batch {
        changes: changes.collect(),
        expected: Vec::new(),
    };
    assert_eq!(engine.apply(&[batch]), [Ok(())]);
    engine.tidy().unwrap();
    drop(engine);
    let path = dir.path().join(FILE);
    let whole = std::fs::read(&path).unwrap();
    of().check(&sealer(), drop).unwrap();

    // A page of records has its keys first, then its sealed values. Older copies of it may be left in the file.
    let key = b"nullVolumes/n150";
    let found = whole.windows(key.len()).enumerate();
    let found = found.filter(|(_, part)| part == key);
    let mut pages: Vec<usize> = found.map(|(at, _)| at / 4096 * 4096).collect();
    pages.dedup();
    let check_with = |at: usize| {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        of().check(&sealer(), drop)
    };
    pages.retain(|page| check_with(page + 1500).is_err());
    let [page] = pages[..] else {
        panic!("{pages:?} are current");
    };
    let bytes = format!("at bytes {page} to {} of {}", page + 4095, whole.len());
    let told = check_with(page + 1500).unwrap_err();
    assert!(told.contains(&bytes) && told.contains(FILE), "{told}");
    let named =
        [": it is not what was sealed", "nullVolumes/n"].map(|part| told.matches(part).count());
    assert_eq!(named, [1, 1], "{told}");
    // Damage of the page's header: its records cannot be told apart.
    let told = check_with(page + 2).unwrap_err();
    assert!(told.contains(&bytes), "{told}");
    // Damage that no checksum shows: the page that was read last may be whole.
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let told = of().check(&sealer(), drop).unwrap_err();
    assert!(
        told.contains("is damaged") && !told.contains("at bytes"),
        "{told}"
    );
}
