//! Tests of a disk that fails and cannot be reopened. The outcome of a commit whose sync failed is in doubt then, and
//! once answered so it must be rolled back.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64};

use redb::Database;

use super::*;
use crate::state::engine::CURRENT;
use crate::state::sim::SimDisk;
use crate::state::tests::put;

fn sealer() -> Sealer {
    Sealer::new(&StateKey::from([7; 32]))
}

/// A disk whose opening can be made to fail.
#[derive(Clone)]
struct Door {
    disk: SimDisk,
    is_open: Arc<AtomicBool>,
    /// Number of times that it was opened, or was to be.
    opened: Arc<AtomicU64>,
}

impl Door {
    fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}

impl Opener for Door {
    fn open(&self) -> Result<Database, redb::Error> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        if self.is_open.load(Ordering::Acquire) {
            return self.disk.open();
        }
        Err(std::io::Error::from(ErrorKind::ReadOnlyFilesystem).into())
    }

    fn peek(&self) -> Result<Database, redb::Error> {
        self.disk.fork().open()
    }
}

fn batch(id: &str, revision: u64) -> Batch {
    Batch {
        changes: vec![put(id, revision)],
        expected: Vec::new(),
    }
}

/// Returns the keys that a start finds.
fn found(disk: &SimDisk) -> Vec<String> {
    let mut engine = Engine::start(disk.fork(), sealer(), CURRENT).unwrap();
    let entries = engine.scan("").unwrap().into_iter();
    entries.map(|entry| entry.key).collect()
}

/// Creates a state with the record `a`; the sync of its next commit fails, and then it cannot be reopened.
fn doubtful(group: &[Batch]) -> (Door, Engine<Door>) {
    failing(group, |steps| steps - 1, ErrorKind::Other)
}

/// As [`doubtful`], with a failure at another step of the commit.
fn failing(group: &[Batch], at: impl FnOnce(u64) -> u64, kind: ErrorKind) -> (Door, Engine<Door>) {
    let disk = SimDisk::new(&sealer());
    let is_open = Arc::new(AtomicBool::new(true));
    let door = Door {
        disk,
        is_open,
        opened: Arc::default(),
    };
    let mut engine = Engine::start(door.clone(), sealer(), CURRENT).unwrap();
    assert_eq!(engine.apply(&[batch("nullVolumes/a", 1)]), [Ok(())]);
    engine.tidy().unwrap();
    let calm = door.disk.fork();
    let mut other = Engine::start(calm.clone(), sealer(), CURRENT).unwrap();
    let before = calm.steps();
    assert!(other.apply(group).iter().all(Result::is_ok));
    let steps = calm.steps() - before;
    door.disk.fail_after(at(steps), kind);
    door.is_open.store(false, Ordering::Release);
    (door, engine)
}

#[test]
fn a_commit_in_doubt_is_answered_so_and_undone_without_another_commit() {
    for group in [
        vec![batch("nullVolumes/b", 2)],
        vec![batch("nullVolumes/b", 2), batch("nullVolumes/c", 3)],
    ] {
        let (door, mut engine) = doubtful(&group);
        let results = engine.apply(&group);
        let unknown = |result: &Result<(), Error>| matches!(result, Err(Error::Unknown(_)));
        assert!(results.iter().all(unknown), "{results:?}");
        // A crash now would keep the commit, hence the answer `Unknown`.
        assert_eq!(found(&door.disk).len(), 1 + group.len());
        assert!(engine.is_untidy() && engine.tidy().is_err());
        let later = engine.apply(&[batch("nullVolumes/d", 4)]);
        assert!(matches!(later.as_slice(), [Err(Error::Io(_))]), "{later:?}");
        door.is_open.store(true, Ordering::Release);
        assert_eq!((engine.tidy(), engine.is_untidy()), (Ok(()), false));
        assert_eq!(found(&door.disk), ["nullVolumes/a"]);
        assert!(engine.apply(&group).iter().all(Result::is_ok));
        assert_eq!(found(&door.disk).len(), 1 + group.len());
    }
}

#[tokio::test]
async fn a_commit_in_doubt_is_undone_by_itself_and_by_the_end() {
    for by_the_end in [false, true] {
        let changes = || vec![put("nullVolumes/b", 2)];
        let (door, engine) = doubtful(&[batch("nullVolumes/b", 2)]);
        let store = Disk::run(engine, Arc::default()).unwrap();
        let answer = store.commit(changes(), Vec::new()).await;
        assert!(matches!(answer, Err(Error::Unknown(_))), "{answer:?}");
        assert_eq!(found(&door.disk), ["nullVolumes/a", "nullVolumes/b"]);
        door.is_open.store(true, Ordering::Release);
        if by_the_end {
            store.close().await;
            assert_eq!(found(&door.disk), ["nullVolumes/a"]);
            continue;
        }
        let undone = async {
            while found(&door.disk).len() > 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let undone = tokio::time::timeout(Duration::from_secs(30), undone).await;
        undone.expect("it is undone without a further request");
        store.close().await;
    }
}

#[test]
fn a_commit_that_is_not_there_has_failed_even_if_nothing_can_be_opened() {
    let group = [batch("nullVolumes/b", 2)];
    let (door, mut engine) = failing(&group, |_| 0, ErrorKind::StorageFull);
    let results = engine.apply(&group);
    assert!(
        matches!(results.as_slice(), [Err(Error::Full(_))]),
        "{results:?}"
    );
    assert_eq!(found(&door.disk), ["nullVolumes/a"]);
    door.is_open.store(true, Ordering::Release);
    assert_eq!(engine.apply(&group), [Ok(())]);
    assert_eq!(found(&door.disk).len(), 2);
}

#[test]
fn a_failing_disk_is_not_opened_again_for_every_batch() {
    let group: Vec<_> = (0..200)
        .map(|at| batch(&format!("nullVolumes/b{at}"), 2 + at))
        .collect();
    // The disk cannot be opened; then it can, and takes no write.
    let (door, mut engine) = failing(&group, |_| 0, ErrorKind::Other);
    for _ in 0..2 {
        let before = door.opened();
        let begun = Instant::now();
        for _ in 0..3 {
            let results = engine.apply(&group);
            let failed =
                |result: &Result<(), Error>| matches!(result, Err(Error::Io(_) | Error::Full(_)));
            assert!(results.iter().all(failed), "{results:?}");
        }
        // One attempt for each of the first delays at most, however slow the machine is.
        let delays = begun.elapsed().as_millis() / 50;
        let bound = 8 + u64::try_from(delays).unwrap();
        assert!(
            door.opened() - before <= bound,
            "{} times",
            door.opened() - before
        );
        door.disk.fail_from_now_on();
        door.is_open.store(true, Ordering::Release);
    }
    door.disk.heal();
    let whole = poll(|| engine.apply(&group).iter().all(Result::is_ok));
    assert!(whole, "it takes changes again by itself");
    assert_eq!(found(&door.disk).len(), 201);
}

/// Polls a condition that time brings about.
fn poll(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if is_so() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[tokio::test]
async fn an_unconfirmed_commit_is_confirmed_by_itself_though_the_disk_had_to_be_reopened() {
    let group = [batch("nullVolumes/b", 2)];
    let (door, mut engine) = failing(&group, |_| 0, ErrorKind::StorageFull);
    // This commit is to succeed, and the one after it to fail.
    door.disk.heal();
    assert_eq!(engine.apply(&group), [Ok(())]);
    door.disk.fail_after(0, ErrorKind::StorageFull);
    let failed = engine.apply(&[batch("nullVolumes/c", 3)]);
    assert!(
        matches!(failed.as_slice(), [Err(Error::Full(_))]),
        "{failed:?}"
    );
    assert!(engine.is_untidy(), "the commit before is not confirmed");
    assert!(engine.tidy().is_err());
    let before = door.disk.steps();
    let store = Disk::run(engine, Arc::default()).unwrap();
    // The writer tidies after its first request.
    store.scan("").await.unwrap_err();
    door.is_open.store(true, Ordering::Release);
    let confirmed = async {
        while door.disk.steps() == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let confirmed = tokio::time::timeout(Duration::from_secs(30), confirmed).await;
    confirmed.expect("it is confirmed without a further request");
    store.close().await;
    assert_eq!(found(&door.disk), ["nullVolumes/a", "nullVolumes/b"]);
}
