//! Tests of the store on files: errors for a state that cannot be used, which is left unchanged.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::tests::{entry, keeps_its_promises, put, removal};
use super::*;

fn key() -> StateKey {
    StateKey::from([5; 32])
}

/// Creates a directory with a state of 40 records that was closed cleanly.
async fn state() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = Disk::open(dir.path(), &key()).unwrap();
    for at in 0..40 {
        let changes = vec![put(&format!("nullVolumes/{at:02}"), at + 1)];
        store.commit(changes, Vec::new()).await.unwrap();
    }
    store.close().await;
    let file = dir.path().join("state.redb");
    (dir, file)
}

fn refused(dir: &std::path::Path, key: &StateKey) -> String {
    let error = Disk::open(dir, key).map(drop).unwrap_err();
    assert!(!error.contains('\n'), "{error}");
    assert!(error.contains("state.redb"), "{error}");
    error
}

#[tokio::test]
async fn a_disk_keeps_the_promises_of_a_store() {
    let dir = tempfile::tempdir().unwrap();
    keeps_its_promises(&Disk::open(dir.path(), &key()).unwrap()).await;
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let (dir, file) = state().await;
    let store = Disk::open(dir.path(), &key()).unwrap();
    let found = store.scan("nullVolumes/").await.unwrap();
    assert_eq!(found.len(), 40);
    assert_eq!(found[7], entry("nullVolumes/07", 8));
    let gone = vec![removal("nullVolumes/07", 99)];
    store.commit(gone, Vec::new()).await.unwrap();
    store.close().await;
    assert_eq!(store.scan("").await, Err(Error::Closed));
    let store = Disk::open(dir.path(), &key()).unwrap();
    assert_eq!(store.revision(), 99);
    assert_eq!(store.scan("").await.unwrap().len(), 39);
    let mode = std::fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_once_are_all_answered_and_all_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(Disk::open(dir.path(), &key()).unwrap());
    let callers: Vec<_> = (0..64_u64)
        .map(|caller| {
            let store = std::sync::Arc::clone(&store);
            tokio::spawn(async move {
                for round in 0..4 {
                    let key = format!("nullVolumes/{caller}-{round}");
                    let changes = vec![put(&key, caller * 4 + round + 1)];
                    store.commit(changes, vec![(key, None)]).await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(store.scan("").await.unwrap().len(), 256);
    let stats = store.stats();
    assert_eq!(stats.commits, 256);
    assert!(stats.syncs < 256, "they share syncs: {stats:?}");
}

#[tokio::test]
async fn no_secret_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Disk::open(dir.path(), &key()).unwrap();
    let mut secret = entry("nvmeSubsystems/s", 1);
    secret.object = b"NVMeTLSkey-1:01:not to be seen:".to_vec();
    store
        .commit(vec![Change::Put(secret)], Vec::new())
        .await
        .unwrap();
    store.close().await;
    let content = std::fs::read(dir.path().join("state.redb")).unwrap();
    let has = |text: &[u8]| content.windows(text.len()).any(|part| part == text);
    assert!(has(b"nvmeSubsystems/s"));
    assert!(!has(b"NVMeTLSkey"));
}

#[tokio::test]
async fn another_key_is_told_and_changes_nothing() {
    let (dir, file) = state().await;
    let before = std::fs::read(&file).unwrap();
    let error = refused(dir.path(), &StateKey::from([6; 32]));
    assert!(error.contains("sealed with another key"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn a_file_that_is_cut_empty_or_foreign_is_refused_and_left_as_it_is() {
    let (dir, file) = state().await;
    let whole = std::fs::read(&file).unwrap();
    for length in [
        0,
        5,
        9,
        320,
        4096,
        whole.len() / 2,
        whole.len() - 4096,
        whole.len() - 1,
    ] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let error = refused(dir.path(), &key());
        assert!(
            error.contains("is damaged") || error.contains("no state"),
            "{length} bytes: {error}"
        );
        assert_eq!(std::fs::read(&file).unwrap(), &whole[..length]);
    }
    std::fs::write(&file, "volumes: []\n").unwrap();
    let error = refused(dir.path(), &key());
    assert!(error.contains("is no state of opi-spdk"), "{error}");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let error = refused(dir.path(), &key());
    assert!(
        error.contains("not a file") || error.contains("directory"),
        "{error}"
    );
}

/// Damage of a page without records may go unnoticed; a record is never returned damaged.
#[tokio::test]
async fn a_flipped_byte_is_told_of_or_without_effect() {
    let (dir, file) = state().await;
    let whole = std::fs::read(&file).unwrap();
    let mut told = 0;
    // Every byte of the header, and a sample of each page.
    let places = (0..512).chain((512..whole.len()).step_by(1021));
    for place in places {
        let mut changed = whole.clone();
        changed[place] ^= 1 << (place % 8);
        std::fs::write(&file, &changed).unwrap();
        match Disk::open(dir.path(), &key()) {
            Err(error) => {
                told += 1;
                assert!(!error.contains('\n'), "{error}");
                assert_eq!(std::fs::read(&file).unwrap(), changed, "byte {place}");
            }
            Ok(store) => {
                let found = store.scan("").await.unwrap();
                assert!(found.len() >= 39, "byte {place}: {} records", found.len());
                for (at, found) in found.iter().enumerate() {
                    let key = format!("nullVolumes/{at:02}");
                    assert_eq!(*found, entry(&key, at as u64 + 1), "byte {place}");
                }
                store.close().await;
            }
        }
    }
    assert!(told > 20, "{told}");
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let (dir, _) = state().await;
    let first = Disk::open(dir.path(), &key()).unwrap();
    let error = refused(dir.path(), &key());
    assert!(error.contains("in use by another process"), "{error}");
    first.close().await;
}

#[tokio::test]
async fn a_start_that_was_cut_off_before_the_state_was_whole_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.new"), "half").unwrap();
    let store = Disk::open(dir.path(), &key()).unwrap();
    assert_eq!(store.scan("").await, Ok(Vec::new()));
    assert!(!dir.path().join("state.new").exists());
}
