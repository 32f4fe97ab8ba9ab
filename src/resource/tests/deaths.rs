//! Crash tests: state after the process died between two steps of a change. One test for each entry of the table
//! in docs/design.md, which names the tests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::*;
use super::durable::reconciler;
use super::{Volumes, World, called, of, text};
use crate::api::storage::NullVolume;
use crate::error::Error;
use crate::state::sim::SimDisk;
use crate::state::sim_store::{Death, SimStore, empty_disk};

/// A simulated process: its memory, its SPDK and its store.
struct Process {
    store: Arc<SimStore>,
    world: World,
    /// Number of records still pending after the replay at start.
    pending: usize,
}

impl Process {
    /// Starts a process: loads the stored records and attempts each once.
    async fn start(disk: &SimDisk) -> Self {
        let store = SimStore::start(disk).expect("the disk has power");
        let shared = Shared::with(Arc::clone(&store) as Arc<dyn Store>);
        let world = World::over(shared, Volumes::default());
        let reconciler = reconciler(&world);
        let names = reconciler.load(|_| false).await.unwrap();
        reconciler.replay(&names).await;
        world.shared.set_restored();
        let pending = world.shared.conditions.all().len();
        Self {
            store,
            world,
            pending,
        }
    }

    fn in_spdk(&self) -> Vec<String> {
        self.world.engine.made.lock().iter().cloned().collect()
    }
}

/// State after a crash during a change.
struct After {
    /// Objects in SPDK at the crash.
    in_dead_spdk: Vec<String>,
    /// Updates that SPDK had made by then.
    updates_of_dead_spdk: usize,
    /// The restarted process, on the surviving disk.
    process: Process,
}

/// Crashes the process during `change`. If `is_there`, a volume `a` of 64 blocks exists before.
async fn dies<T>(
    is_there: bool,
    at: Death,
    change: impl AsyncFnOnce(&World) -> Result<T, Error>,
) -> After {
    let disk = empty_disk();
    let process = Process::start(&disk).await;
    if is_there {
        process.world.volume("a", of(512, 64)).await.unwrap();
    }
    process.store.die(at);
    let answered = process.store.live(change(&process.world)).await;
    assert!(answered.is_none(), "it has died before its answer");
    let next = Process::start(&disk.fork()).await;
    assert_eq!(next.pending, 0);
    After {
        in_dead_spdk: process.in_spdk(),
        updates_of_dead_spdk: process.world.engine.updates.load(Ordering::Relaxed),
        process: next,
    }
}

async fn create(world: &World) -> Result<NullVolume, Error> {
    world.volume("a", of(512, 64)).await
}

async fn update(world: &World) -> Result<NullVolume, Error> {
    world.change(called("a", of(0, 128)), &[]).await
}

async fn update_that_destroys(world: &World) -> Result<NullVolume, Error> {
    world.engine.destroys.store(true, Ordering::Relaxed);
    update(world).await
}

async fn delete(world: &World) -> Result<(), Error> {
    world.delete("a").await
}

fn blocks(process: &Process) -> i64 {
    process.world.volumes.get("a").unwrap().blocks_count
}

#[tokio::test(start_paused = true)]
async fn of_a_create_that_died_before_the_store_nothing_is_there() {
    let after = dies(false, Death::Before(0), create).await;
    assert_eq!(after.in_dead_spdk, ["a"], "SPDK comes first");
    let process = after.process;
    assert!(process.world.volumes.get("a").is_err() && process.in_spdk().is_empty());
    let made = create(&process.world).await.unwrap();
    assert_eq!((made.blocks_count, process.store.commits()), (64, 1));
}

#[tokio::test(start_paused = true)]
async fn a_create_that_died_after_the_store_is_there_and_answered_when_repeated() {
    let after = dies(false, Death::After(0), create).await;
    let process = after.process;
    assert_eq!(
        (blocks(&process), process.in_spdk()),
        (64, vec!["a".into()])
    );
    let found = process.world.volumes.get("a");
    assert_eq!(create(&process.world).await, found);
    let other = process.world.volume("a", of(4096, 64)).await;
    assert!(
        matches!(other, Err(Error::AlreadyExists { .. })),
        "{other:?}"
    );
    assert_eq!(process.store.commits(), 0);
}

#[tokio::test(start_paused = true)]
async fn of_an_update_that_died_before_the_store_nothing_is_there() {
    let after = dies(true, Death::Before(0), update).await;
    let process = after.process;
    assert_eq!(blocks(&process), 64);
    assert_eq!(update(&process.world).await.unwrap().blocks_count, 128);
    assert_eq!(process.store.commits(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_died_after_the_store_is_there_and_repeated_changes_nothing() {
    let after = dies(true, Death::After(0), update).await;
    let process = after.process;
    assert_eq!(blocks(&process), 128);
    assert_eq!(update(&process.world).await.unwrap().blocks_count, 128);
    let updates = process.world.engine.updates.load(Ordering::Relaxed);
    assert_eq!((updates, process.store.commits()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_an_update_that_destroys_and_died_before_the_store_nothing_is_destroyed() {
    let after = dies(true, Death::Before(0), update_that_destroys).await;
    assert_eq!(after.updates_of_dead_spdk, 0, "the store comes first");
    let process = after.process;
    assert_eq!(blocks(&process), 64);
    let made = update_that_destroys(&process.world).await.unwrap();
    assert_eq!((made.blocks_count, process.store.commits()), (128, 1));
}

#[tokio::test(start_paused = true)]
async fn an_update_that_destroys_and_died_after_the_store_is_made_by_the_start() {
    let after = dies(true, Death::After(0), update_that_destroys).await;
    assert_eq!(after.updates_of_dead_spdk, 0, "SPDK comes second");
    let process = after.process;
    assert_eq!(
        (blocks(&process), process.in_spdk()),
        (128, vec!["a".into()])
    );
    update_that_destroys(&process.world).await.unwrap();
    let updates = process.world.engine.updates.load(Ordering::Relaxed);
    assert_eq!((updates, process.store.commits()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_a_delete_that_died_before_the_store_nothing_has_begun() {
    let after = dies(true, Death::Before(0), delete).await;
    assert_eq!(after.in_dead_spdk, ["a"], "the store comes first");
    let process = after.process;
    assert_eq!(
        (blocks(&process), process.in_spdk()),
        (64, vec!["a".into()])
    );
    delete(&process.world).await.unwrap();
    assert!(process.in_spdk().is_empty());
}

/// Checks that nothing of the volume is left and that its name is free.
async fn is_gone(process: &Process) {
    assert!(process.world.volumes.get("a").is_err() && process.in_spdk().is_empty());
    let again = text(delete(&process.world).await);
    assert!(again.contains("was not found"), "{again}");
    create(&process.world).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_died_once_begun_is_finished_by_the_start() {
    // Crash before SPDK is called, and after.
    for (at, in_dead_spdk) in [
        (Death::After(0), vec!["a".to_owned()]),
        (Death::Before(1), Vec::new()),
    ] {
        let after = dies(true, at, delete).await;
        assert_eq!(after.in_dead_spdk, in_dead_spdk, "{at:?}");
        assert_eq!(after.process.store.commits(), 1, "{at:?}: the end of it");
        is_gone(&after.process).await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_delete_that_died_before_its_answer_nothing_is_left() {
    let after = dies(true, Death::After(1), delete).await;
    assert_eq!(after.process.store.commits(), 0, "it was at its end");
    is_gone(&after.process).await;
}
