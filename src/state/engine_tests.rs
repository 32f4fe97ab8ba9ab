//! Tests of the engine on a disk that loses power, fails or is full. Invariant: an answered commit is durable,
//! an unanswered one is there completely or not at all.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use proptest::prelude::*;

use super::engine::{Batch, CURRENT, Engine, Format};
use super::fault::Fault;
use super::seal::Sealer;
use super::sim::{Dice, SimDisk, cases};
use super::tests::{entry, put, removal};
use super::{Change, Entry, Error, StateKey};

type Records = BTreeMap<String, Entry>;

fn sealer() -> Sealer {
    Sealer::new(&StateKey::from([3; 32]))
}

fn batch(changes: Vec<Change>) -> Batch {
    Batch {
        changes,
        expected: Vec::new(),
    }
}

fn start(disk: &SimDisk) -> Result<Engine<SimDisk>, Fault> {
    Engine::start(disk.clone(), sealer(), CURRENT)
}

fn records(engine: &mut Engine<SimDisk>) -> Records {
    let entries = engine.scan("").unwrap();
    entries.into_iter().map(|it| (it.key.clone(), it)).collect()
}

fn apply(records: &mut Records, batch: &Batch) {
    for change in &batch.changes {
        match change {
            Change::Put(entry) => records.insert(entry.key.clone(), entry.clone()),
            Change::Remove { key, .. } => records.remove(key),
        };
    }
}

/// Groups of batches of changes; a change is its key, whether it removes, and its size.
type Script = Vec<Vec<Vec<(u8, bool, u16)>>>;

fn scripts() -> impl Strategy<Value = Script> {
    let change = (0..6_u8, any::<bool>(), 0..6000_u16);
    let batch = prop::collection::vec(change, 1..4);
    prop::collection::vec(prop::collection::vec(batch, 1..4), 1..6)
}

fn groups(script: &Script) -> Vec<Vec<Batch>> {
    let mut revision = 0;
    let mut change = |&(key, removes, size): &(u8, bool, u16)| {
        revision += 1;
        let key = format!("nullVolumes/{key}");
        if removes {
            return removal(&key, revision);
        }
        let mut entry = entry(&key, revision);
        entry.object = vec![key.as_bytes()[12]; usize::from(size)];
        Change::Put(entry)
    };
    let mut batches = |group: &Vec<Vec<_>>| {
        let batch_of = |changes: &Vec<_>| batch(changes.iter().map(&mut change).collect());
        group.iter().map(batch_of).collect()
    };
    script.iter().map(&mut batches).collect()
}

/// Runs the script until power is lost. Returns the records of all answered commits, and every set of records
/// that is valid after a restart.
fn until_power_is_lost(disk: &SimDisk, groups: &[Vec<Batch>]) -> (Records, Vec<Records>) {
    let mut sure = Records::new();
    let Ok(mut engine) = start(disk) else {
        return (sure.clone(), vec![sure]);
    };
    for group in groups {
        let results = engine.apply(group);
        let mut possible = vec![sure.clone()];
        if disk.has_lost_power() {
            // The group is durable as a whole, or, if its batches were retried alone, in part.
            for (batch, result) in group.iter().zip(&results) {
                let mut next: Vec<Records> = possible.clone();
                next.iter_mut().for_each(|records| apply(records, batch));
                if result.is_ok() {
                    possible = next;
                } else {
                    possible.extend(next);
                }
            }
            let mut answered = sure;
            for (batch, result) in group.iter().zip(&results) {
                if result.is_ok() {
                    apply(&mut answered, batch);
                }
            }
            return (answered, possible);
        }
        for (batch, result) in group.iter().zip(results) {
            assert_eq!(result, Ok(()));
            apply(&mut sure, batch);
        }
    }
    (sure.clone(), vec![sure])
}

proptest! {
    #![proptest_config(cases(2))]

    #[test]
    fn a_power_loss_at_any_step_and_twice_in_recovery_loses_nothing_that_was_answered(
        script in scripts(), seed in any::<u64>()
    ) {
        let empty = SimDisk::new(&sealer());
        let groups = groups(&script);
        let calm = empty.fork();
        let (all, _) = until_power_is_lost(&calm, &groups);
        let mut dice = Dice(seed);
        for step in 0..calm.steps() {
            let disk = empty.fork();
            disk.lose_power_after(step);
            let (answered, possible) = until_power_is_lost(&disk, &groups);
            let mut disk = disk.restart(&mut dice);
            for _ in 0..2 {
                disk.lose_power_after(dice.below(12));
                drop(start(&disk));
                disk = disk.restart(&mut dice);
            }
            let mut engine = start(&disk).map_err(|fault| {
                TestCaseError::fail(format!("power lost at step {step}: {fault:?}"))
            })?;
            let found = records(&mut engine);
            prop_assert!(
                possible.contains(&found),
                "power lost at step {}: {:?} are there, {:?} were answered",
                step, found.keys(), answered.keys()
            );
            // The state is still writable.
            for group in &groups {
                prop_assert!(engine.apply(group).iter().all(Result::is_ok));
            }
            let mut again = found;
            groups.iter().flatten().for_each(|batch| apply(&mut again, batch));
            prop_assert_eq!(&records(&mut engine), &again);
        }
        prop_assert!(all.len() <= 6);
    }

    #[test]
    fn an_error_at_any_step_fails_that_change_alone_and_it_stays_undone(
        script in scripts(), full in any::<bool>()
    ) {
        let kind = if full { ErrorKind::StorageFull } else { ErrorKind::Other };
        let empty = SimDisk::new(&sealer());
        let groups = groups(&script);
        let calm = empty.fork();
        until_power_is_lost(&calm, &groups);
        for step in 0..calm.steps() {
            let disk = empty.fork();
            let mut engine = start(&disk).unwrap();
            disk.fail_after(step, kind);
            let mut sure = Records::new();
            for group in &groups {
                for (batch, result) in group.iter().zip(engine.apply(group)) {
                    match result {
                        Ok(()) => apply(&mut sure, batch),
                        Err(Error::Full(_)) => prop_assert!(full),
                        Err(Error::Io(_)) => prop_assert!(!full),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                prop_assert_eq!(&records(&mut engine), &sure, "step {}", step);
            }
            drop(engine);
            disk.heal();
            prop_assert_eq!(&records(&mut start(&disk).unwrap()), &sure, "step {}", step);
        }
    }
}

#[test]
fn a_full_disk_fails_the_change_and_nothing_else_until_there_is_room() {
    let disk = SimDisk::new(&sealer());
    let mut engine = start(&disk).unwrap();
    assert_eq!(
        engine.apply(&[batch(vec![put("nullVolumes/a", 1)])]),
        [Ok(())]
    );
    disk.limit(Some(disk.len()));
    let mut large = entry("nullVolumes/b", 2);
    large.object = vec![1; 8 << 20];
    let group = [
        batch(vec![Change::Put(large.clone())]),
        batch(vec![put("nullVolumes/c", 3)]),
    ];
    let results = engine.apply(&group);
    assert!(
        matches!(results.as_slice(), [Err(Error::Full(_)), Ok(())]),
        "{results:?}"
    );
    assert_eq!(
        records(&mut engine).into_keys().collect::<Vec<_>>(),
        ["nullVolumes/a", "nullVolumes/c"]
    );
    disk.limit(None);
    assert!(engine.apply(&group[..1]).iter().all(Result::is_ok));
    assert_eq!(records(&mut engine)["nullVolumes/b"], large);
}

#[test]
fn batches_of_one_group_see_each_other() {
    let disk = SimDisk::new(&sealer());
    let mut engine = start(&disk).unwrap();
    let expecting = |revision, changes| Batch {
        changes,
        expected: vec![("nullVolumes/a".to_owned(), revision)],
    };
    let before = disk.steps();
    let results = engine.apply(&[
        expecting(None, vec![put("nullVolumes/a", 1)]),
        expecting(None, vec![put("nullVolumes/a", 2)]),
        expecting(Some(1), vec![put("nullVolumes/a", 3)]),
        expecting(Some(3), vec![removal("nullVolumes/a", 4)]),
        expecting(None, vec![put("nullVolumes/a", 5)]),
    ]);
    let conflict = Error::Conflict {
        key: "nullVolumes/a".to_owned(),
        expected: None,
        found: Some(1),
    };
    assert_eq!(results, [Ok(()), Err(conflict), Ok(()), Ok(()), Ok(())]);
    assert_eq!(records(&mut engine)["nullVolumes/a"].revision, 5);
    let alone = disk.steps() - before;
    let group: Vec<_> = (0..50)
        .map(|at| batch(vec![put(&format!("nullVolumes/{at}"), 6 + at)]))
        .collect();
    let before = disk.steps();
    assert!(engine.apply(&group).iter().all(Result::is_ok));
    assert!(disk.steps() - before < 4 * alone, "they share their syncs");
}

#[test]
fn an_older_format_is_migrated_once_and_a_newer_one_is_refused() {
    fn add(txn: &redb::WriteTransaction, _: &Sealer) -> Result<(), redb::Error> {
        let mut meta = txn.open_table(super::format::META)?;
        let was = meta.insert("migrated", [1].as_slice())?;
        assert!(was.is_none(), "migrated twice");
        Ok(())
    }
    let next = Format {
        version: CURRENT.version + 1,
        migrations: &[add],
    };
    let disk = SimDisk::new(&sealer());
    let mut engine = start(&disk).unwrap();
    assert_eq!(
        engine.apply(&[batch(vec![put("nullVolumes/a", 1)])]),
        [Ok(())]
    );
    drop(engine);
    for _ in 0..2 {
        let mut engine = Engine::start(disk.clone(), sealer(), next).unwrap();
        assert_eq!(records(&mut engine).len(), 1);
    }
    let refused = start(&disk).map(drop).unwrap_err();
    assert!(
        matches!(&refused, Fault::Format(what) if what.starts_with("has format 2, ")),
        "{refused:?}"
    );
}

#[test]
fn the_highest_revision_outlives_its_record_and_the_process() {
    let disk = SimDisk::new(&sealer());
    let mut engine = start(&disk).unwrap();
    let changes = vec![put("nullVolumes/a", 8), removal("nullVolumes/a", 9)];
    assert_eq!(engine.apply(&[batch(changes)]), [Ok(())]);
    drop(engine);
    let mut engine = start(&disk).unwrap();
    assert_eq!((engine.revision(), records(&mut engine).len()), (9, 0));
}
