//! Tests of the store's content at each step of a change, and of changes over a store that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::super::*;
use super::{Volumes, World, called, named, of};
use crate::error::Error;
use crate::reconcile::Reconciler;
use crate::state::{self, Change, Entry, Expected, Watch};

/// Store whose commits fail for a given range.
#[derive(Default)]
pub(super) struct Faulty {
    memory: Memory,
    commits: AtomicUsize,
    fails_from: AtomicUsize,
    fails_to: AtomicUsize,
}

impl Faulty {
    /// Lets the next `succeed` commits succeed and the `fail` commits after them fail.
    pub(super) fn fail_after(&self, succeed: usize, fail: usize) {
        let from = self.commits.load(Ordering::Relaxed) + succeed;
        self.fails_from.store(from, Ordering::Relaxed);
        self.fails_to.store(from + fail, Ordering::Relaxed);
    }
}

impl Store for Faulty {
    fn commit(
        &self,
        changes: Vec<Change>,
        expected: Expected,
    ) -> BoxFuture<'_, Result<(), state::Error>> {
        let number = self.commits.fetch_add(1, Ordering::Relaxed);
        let from = self.fails_from.load(Ordering::Relaxed);
        if (from..self.fails_to.load(Ordering::Relaxed)).contains(&number) {
            return Box::pin(async { Err(state::Error::Full("no space left".into())) });
        }
        self.memory.commit(changes, expected)
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, state::Error>> {
        self.memory.scan(prefix)
    }

    fn watch(&self, after: Option<u64>) -> Result<Watch, state::Error> {
        self.memory.watch(after)
    }

    fn revision(&self) -> u64 {
        self.memory.revision()
    }
}

/// Creates a world over a store.
fn world(store: &Arc<Faulty>) -> World {
    let shared = Shared::with(Arc::clone(store) as Arc<dyn Store>);
    shared.set_restored();
    World::over(shared, Volumes::default())
}

async fn stored(store: &Faulty) -> Vec<(String, bool)> {
    let entries = store.scan("").await.unwrap();
    let entries = entries.into_iter().map(|entry| (entry.key, entry.deleting));
    entries.collect()
}

pub(super) fn reconciler(world: &World) -> Arc<Reconciler> {
    reconciler_with(world, [])
}

/// A reconciler of the world's kinds, and of others.
pub(super) fn reconciler_with<const OTHERS: usize>(
    world: &World,
    others: [Arc<dyn Records>; OTHERS],
) -> Arc<Reconciler> {
    let mut kinds: Vec<Arc<dyn Records>> = vec![
        Arc::clone(&world.volumes) as _,
        Arc::clone(&world.subsystems) as _,
        Arc::clone(&world.namespaces) as _,
    ];
    kinds.extend(others);
    Reconciler::new(&world.shared, kinds)
}

/// Runs the queue until it is empty.
async fn settle(world: &World) {
    let running = tokio::spawn(reconciler(world).run());
    while !world.shared.queue.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_is_stored_and_each_change_has_a_revision_of_its_own() {
    let store = Arc::new(Faulty::default());
    let world = world(&store);
    world.volume("a", of(512, 64)).await.unwrap();
    let first = store.scan("").await.unwrap().remove(0);
    assert_eq!(
        (first.key.as_str(), first.created),
        ("nullVolumes/a", first.revision)
    );
    assert_eq!(first.kind, "opi_api.storage.v1.NullVolume");
    world.change(called("a", of(0, 128)), &[]).await.unwrap();
    let second = store.scan("").await.unwrap().remove(0);
    assert_eq!(
        (second.created, second.revision),
        (first.created, first.revision + 1)
    );
    world.delete("a").await.unwrap();
    assert!(stored(&store).await.is_empty());
    assert_eq!(world.shared.revision(), store.revision());
}

#[tokio::test(start_paused = true)]
async fn a_change_that_cannot_be_stored_is_undone_and_told() {
    let store = Arc::new(Faulty::default());
    let world = world(&store);
    store.fail_after(0, 1);
    let error = world.volume("a", of(512, 64)).await.unwrap_err();
    assert!(matches!(error, Error::ResourceExhausted(_)), "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(world.volumes.get("a").is_err() && world.engine.made.lock().is_empty());

    let made = world.volume("a", of(512, 64)).await.unwrap();
    store.fail_after(0, 1);
    world
        .change(called("a", of(0, 128)), &[])
        .await
        .unwrap_err();
    assert_eq!(world.volumes.get("a"), Ok(made.clone()));
    let updates = world.engine.updates.load(Ordering::Relaxed);
    assert_eq!(updates, 2, "it was changed, and changed back");
    assert_eq!(world.engine.undone.load(Ordering::Relaxed), 1);

    store.fail_after(0, 1);
    world.delete("a").await.unwrap_err();
    assert_eq!(world.volumes.get("a"), Ok(made));
    assert!(world.engine.made.lock().contains("a"), "SPDK was not asked");
    assert_eq!(stored(&store).await, [("nullVolumes/a".to_owned(), false)]);
    world.delete("a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_undone_either_is_retried_until_it_is() {
    let store = Arc::new(Faulty::default());
    let world = world(&store);
    let made = world.volume("a", of(512, 64)).await.unwrap();
    // The update is made in SPDK, its commit fails, and the first attempt of its rollback fails.
    store.fail_after(0, 1);
    world.engine.fails_after_one_update();
    world
        .change(called("a", of(0, 128)), &[])
        .await
        .unwrap_err();
    assert!(
        world
            .shared
            .conditions
            .is_pending(&Key::from("nullVolumes/a"))
    );
    world.engine.fails.store(false, Ordering::Relaxed);
    settle(&world).await;
    assert_eq!(world.volumes.get("a"), Ok(made));
    assert_eq!(world.shared.conditions.all(), []);
    assert_eq!(world.engine.updates.load(Ordering::Relaxed), 2);
    assert_eq!(world.engine.undone.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_spdk_has_in_another_version_takes_no_new_user() {
    let store = Arc::new(Faulty::default());
    let world = world(&store);
    world.subsystem("s", "nqn.2014-08.org:s").await.unwrap();
    for id in ["used", "free"] {
        world.volume(id, of(512, 64)).await.unwrap();
    }
    let user = world.namespace("nvmeSubsystems/s", "n", "volumes/used");
    let mut user = user.await.unwrap();
    for id in ["used", "free"] {
        store.fail_after(0, 1);
        world.engine.fails_after_one_update();
        let changed = world.change(called(id, of(0, 128)), &[]).await;
        changed.unwrap_err();
        world.engine.fails.store(false, Ordering::Relaxed);
    }
    let refused = world.namespace("nvmeSubsystems/s", "m", "volumes/free");
    let refused = refused.await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable(_)), "{refused}");
    assert!(
        refused.to_string().contains("volumes/free is being"),
        "{refused}"
    );
    user.spec.as_mut().unwrap().host_nsid = 7;
    let update = Update {
        object: Some(user),
        mask: None,
        allow_missing: false,
    };
    let updated = world.namespaces.update(CallContext::default(), update);
    updated.await.expect("it is a user already");
    settle(&world).await;
    let taken = world.namespace("nvmeSubsystems/s", "m", "volumes/free");
    taken.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_has_begun_is_brought_to_its_end() {
    let store = Arc::new(Faulty::default());
    let world = world(&store);
    world.volume("a", of(512, 64)).await.unwrap();
    // SPDK has removed the object, but the commit that removes the record fails.
    store.fail_after(1, 1);
    world.delete("a").await.unwrap_err();
    assert_eq!(stored(&store).await, [("nullVolumes/a".to_owned(), true)]);
    let again = world.volume("a", of(512, 64)).await.unwrap_err();
    assert!(again.to_string().contains("is being deleted"), "{again}");
    settle(&world).await;
    assert!(stored(&store).await.is_empty() && world.volumes.get("a").is_err());
    world.volume("a", of(512, 64)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_being_deleted_takes_no_new_user() {
    let store = Arc::new(Faulty::default());
    let world = world(&store);
    for id in ["a", "b"] {
        world.volume(id, of(512, 64)).await.unwrap();
        let nqn = format!("nqn.2014-08.org:{id}");
        world.subsystem(id, &nqn).await.unwrap();
    }
    let used = world.namespace("nvmeSubsystems/b", "n", "volumes/b").await;
    let mut used = used.unwrap();
    // The ends of both deletes are not stored.
    store.fail_after(1, 1);
    world.delete("a").await.unwrap_err();
    store.fail_after(1, 1);
    let subsystems = &world.subsystems;
    let request = named("nvmeSubsystems/a");
    let deleted = subsystems.delete(CallContext::default(), &request).await;
    deleted.unwrap_err();
    // An attempt of the queue holds the lock of the volume.
    let (by, volume) = (
        tokio::time::Instant::now() + DEFAULT_TIMEOUT,
        Key::from("nullVolumes/a"),
    );
    let held = world
        .shared
        .locks
        .acquire(&volume, by, [volume.clone()], []);
    let held = held.await.map_err(|_| "busy").unwrap();
    let begun = tokio::time::Instant::now();
    used.spec.as_mut().unwrap().volume_name_ref = "volumes/a".into();
    let update = Update {
        object: Some(used),
        mask: None,
        allow_missing: false,
    };
    let namespaces = &world.namespaces;
    for (refused, subject) in [
        (
            (world.namespace("nvmeSubsystems/b", "m", "volumes/a")).await,
            "volumes/a",
        ),
        (
            (world.namespace("nvmeSubsystems/a", "m", "volumes/b")).await,
            "nvmeSubsystems/a",
        ),
        (
            (namespaces.update(CallContext::default(), update)).await,
            "volumes/a",
        ),
    ] {
        let refused = refused.unwrap_err();
        assert!(
            matches!(&refused, Error::FailedPrecondition { subject: of, .. } if of == subject),
            "{refused}"
        );
        assert!(
            refused.to_string().contains("is being deleted"),
            "{refused}"
        );
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "they waited for no lock");
    drop(held);
    settle(&world).await;
    let missing = world.namespace("nvmeSubsystems/a", "m", "volumes/b").await;
    let missing = missing.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_fails_leaves_the_record_as_it_was() {
    let store = Arc::new(Faulty::default());
    let world = world(&store);
    let made = world.volume("a", of(512, 64)).await.unwrap();
    for store_fails in [false, true] {
        world.engine.fails.store(true, Ordering::Relaxed);
        if store_fails {
            store.fail_after(1, 1);
        }
        world.delete("a").await.unwrap_err();
        world.engine.fails.store(false, Ordering::Relaxed);
        settle(&world).await;
        assert_eq!(world.volumes.get("a"), Ok(made.clone()));
        assert_eq!(stored(&store).await, [("nullVolumes/a".to_owned(), false)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_makes_all_that_was_there_as_it_was_and_finishes_what_was_to_go() {
    let store = Arc::new(Faulty::default());
    let before = world(&store);
    before.subsystem("s", "nqn.2014-08.org:n").await.unwrap();
    before.volume("a", of(512, 64)).await.unwrap();
    before
        .namespace("nvmeSubsystems/s", "n", "volumes/a")
        .await
        .unwrap();
    before.volume("b", of(512, 64)).await.unwrap();
    store.fail_after(1, 1);
    before.delete("b").await.unwrap_err();
    let revision = before.shared.revision();

    let after = World::over(
        Shared::with(Arc::clone(&store) as Arc<dyn Store>),
        Volumes::default(),
    );
    let reconciler = reconciler(&after);
    let names = reconciler.load(|_| false).await.unwrap();
    assert_eq!(
        after.volumes.get("a"),
        before.volumes.get("a"),
        "it is readable at once"
    );
    assert_eq!(after.engine.made.lock().len(), 0);
    let waiting = after.volume("c", of(512, 64)).await.unwrap_err();
    assert!(matches!(waiting, Error::Unavailable(_)), "{waiting}");
    reconciler.replay(&names).await;
    after.shared.set_restored();
    assert_eq!(after.shared.conditions.all(), []);
    assert_eq!(*after.engine.made.lock(), ["a".to_owned()].into());
    assert!(after.volumes.get("b").is_err());
    let error = after.delete("volumes/a").await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("nvmeSubsystems/s/nvmeNamespaces/n"),
        "{error}"
    );
    after.volume("c", of(512, 64)).await.unwrap();
    assert!(after.shared.revision() > revision);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_made_at_start_is_pending_with_its_reason_and_comes_by_itself() {
    let store = Arc::new(Faulty::default());
    world(&store).volume("a", of(512, 64)).await.unwrap();
    let after = world(&store);
    let reconciler = reconciler(&after);
    let names = reconciler.load(|_| false).await.unwrap();
    after.engine.panics.store(true, Ordering::Relaxed);
    reconciler.replay(&names).await;
    assert_eq!(reconciler.panics(), 1);
    let key = Key::from("nullVolumes/a");
    assert!(
        after
            .shared
            .conditions
            .reason(&key)
            .unwrap()
            .contains("fault of the server")
    );
    after.engine.panics.store(false, Ordering::Relaxed);
    after.engine.fails.store(true, Ordering::Relaxed);
    let running = tokio::spawn(Arc::clone(&reconciler).run());
    while after
        .shared
        .conditions
        .reason(&key)
        .is_none_or(|r| !r.contains("does not fit"))
    {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(after.volumes.get("a").is_ok(), "it is answered");
    let error = after.delete("a").await.unwrap_err();
    assert!(error.to_string().contains("does not fit"), "{error}");
    after.engine.fails.store(false, Ordering::Relaxed);
    while !after.shared.queue.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    running.abort();
    assert_eq!(after.shared.conditions.all(), []);
    assert!(after.engine.made.lock().contains("a"));
    after
        .volumes
        .delete(CallContext::default(), &named("a"))
        .await
        .unwrap();
}
