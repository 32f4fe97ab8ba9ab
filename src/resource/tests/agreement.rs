//! Tests of reconciling SPDK and the store after one of them refused a change or a panic cut it off. SPDK is
//! simulated by a map; each operation checks its arguments against it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::durable::Faulty;
use super::*;
use crate::api::storage::MallocVolume;
use crate::reconcile::Reconciler;
use crate::state::{self, Entry};

/// Operation of the kind that fails once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Ensure,
    Update,
    Remove,
}

/// Test volumes of which every update destroys the content, or none.
#[derive(Default)]
struct Memories {
    has: Mutex<BTreeMap<String, MallocVolume>>,
    /// Number of updates, each of which destroys content.
    destroyed: AtomicUsize,
    can_be_undone: bool,
    panics: Mutex<Vec<Step>>,
    panics_in_spdk: Mutex<Vec<Step>>,
    fails: Mutex<Vec<Step>>,
    /// Operations that fail after the next update.
    then_fails: Mutex<Vec<Step>>,
    prepared: AtomicUsize,
    settled: AtomicUsize,
}

impl Memories {
    fn step(&self, step: Step) -> Result<(), Error> {
        let take = |steps: &Mutex<Vec<Step>>| {
            let mut steps = steps.lock();
            let at = steps.iter().position(|it| *it == step);
            at.map(|at| steps.swap_remove(at)).is_some()
        };
        assert!(!take(&self.panics), "asked to panic");
        if take(&self.panics_in_spdk) {
            return Err(spdk::CallError::Panicked.into());
        }
        match take(&self.fails) {
            true => Err(Error::Unavailable("SPDK is asked to fail".into())),
            false => Ok(()),
        }
    }

    fn panics_in(&self, step: Step) {
        self.panics.lock().push(step);
    }

    fn fails_in(&self, step: Step) {
        self.fails.lock().push(step);
    }

    fn count(&self, id: &str) -> Option<i64> {
        self.has.lock().get(id).map(|volume| volume.blocks_count)
    }
}

impl Kind for Arc<Memories> {
    type Object = MallocVolume;

    const STAGE: Stage = Stage::Base;

    fn check(&self, _: &MallocVolume, _: &mut Violations) {}

    /// Each size is an owned key, so that a change of the size changes the claims.
    fn claims(&self, name: &Name, object: &MallocVolume) -> Claims {
        let size = Key::from(format!("size/{}", object.blocks_count));
        Claims::new().owns(Key::bdev(name.id())).owns(size)
    }

    async fn prepare(&self, _: &CallContext, _: &Name, _: &MallocVolume) -> Result<(), Error> {
        self.prepared.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: MallocVolume,
    ) -> Result<MallocVolume, Error> {
        let mut has = self.has.lock();
        if object.name.is_empty() && has.contains_key(name.id()) {
            return Err(Error::failed_precondition(name, "SPDK has another's"));
        }
        let entry = has.entry(name.id().to_owned());
        entry.or_insert_with(|| called_memory(name.id(), object.blocks_count));
        drop(has);
        self.step(Step::Ensure)?;
        Ok(object)
    }

    fn settled(&self, _: &Name) {
        self.settled.fetch_add(1, Ordering::Relaxed);
    }

    async fn foresee(
        &self,
        _: &CallContext,
        _: &Name,
        change: &Change<MallocVolume>,
    ) -> Result<Option<MallocVolume>, Error> {
        Ok((!self.can_be_undone).then(|| change.wanted.clone()))
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<MallocVolume>,
    ) -> Result<MallocVolume, Error> {
        assert_eq!(self.count(name.id()), Some(change.old.blocks_count));
        self.step(Step::Update)?;
        self.destroyed.fetch_add(1, Ordering::Relaxed);
        let now = called_memory(name.id(), change.wanted.blocks_count);
        self.has.lock().insert(name.id().to_owned(), now);
        self.fails.lock().append(&mut self.then_fails.lock());
        Ok(change.wanted)
    }

    /// An object that differs from the one to remove belongs to another owner.
    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        object: &MallocVolume,
    ) -> Result<(), Error> {
        self.step(Step::Remove)?;
        if self.count(name.id()) == Some(object.blocks_count) {
            self.has.lock().remove(name.id());
        }
        Ok(())
    }

    async fn stats(&self, _: &Name, _: &MallocVolume) -> Result<VolumeStats, Error> {
        Ok(VolumeStats::default())
    }
}

fn memory(blocks_count: i64) -> MallocVolume {
    MallocVolume {
        block_size: 512,
        blocks_count,
        ..Default::default()
    }
}

fn called_memory(id: &str, blocks_count: i64) -> MallocVolume {
    MallocVolume {
        name: format!("volumes/{id}"),
        ..memory(blocks_count)
    }
}

struct Place {
    store: Arc<Faulty>,
    shared: Arc<Shared>,
    spdk: Arc<Memories>,
    volumes: Arc<Collection<Arc<Memories>>>,
}

impl Place {
    fn new(can_be_undone: bool) -> Self {
        let store = Arc::new(Faulty::default());
        let shared = Shared::with(Arc::clone(&store) as Arc<dyn Store>);
        shared.set_restored();
        let spdk = Arc::new(Memories {
            can_be_undone,
            ..Memories::default()
        });
        Self {
            volumes: Collection::new(Arc::clone(&spdk), &shared),
            store,
            shared,
            spdk,
        }
    }

    async fn create(&self, id: &str, blocks_count: i64) -> Result<MallocVolume, Error> {
        let request = create("", id, memory(blocks_count));
        self.volumes.create(CallContext::default(), request).await
    }

    async fn update(&self, id: &str, blocks_count: i64) -> Result<MallocVolume, Error> {
        let request = Update {
            object: Some(called_memory(id, blocks_count)),
            mask: None,
            allow_missing: false,
        };
        self.volumes.update(CallContext::default(), request).await
    }

    async fn delete(&self, id: &str) -> Result<(), Error> {
        self.volumes
            .delete(CallContext::default(), &named(id))
            .await
    }

    /// Returns the sizes in the store, in memory and in SPDK.
    async fn sizes(&self, id: &str) -> [Option<i64>; 3] {
        let entries = self.store.scan("").await.unwrap();
        let entry = entries
            .iter()
            .find(|entry| entry.key.ends_with(&format!("/{id}")));
        let stored = entry.map(|entry| {
            let object: MallocVolume = prost::Message::decode(entry.object.as_slice()).unwrap();
            object.blocks_count
        });
        let shown = self.volumes.get(id).ok().map(|object| object.blocks_count);
        [stored, shown, self.spdk.count(id)]
    }

    fn key(id: &str) -> Key {
        Key::from(format!("mallocVolumes/{id}"))
    }

    /// Runs the queue until it is empty.
    async fn settle(&self) {
        let kinds: Vec<Arc<dyn Records>> = vec![Arc::clone(&self.volumes) as _];
        let running = tokio::spawn(Reconciler::new(&self.shared, kinds).run());
        let empty = async {
            while !self.shared.queue.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(600), empty).await;
        ended.expect("the queue comes to its end");
        running.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn content_is_destroyed_only_for_a_change_that_is_stored() {
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.store.fail_after(0, 1);
    let error = place.update("a", 128).await.unwrap_err();
    assert!(error.to_string().contains("was not made"), "{error}");
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    assert_eq!(place.spdk.destroyed.load(Ordering::Relaxed), 0);
    let made = place.update("a", 128).await.unwrap();
    assert_eq!(place.volumes.get("a"), Ok(made));
    assert_eq!(place.sizes("a").await, [Some(128); 3]);
    assert_eq!(place.spdk.destroyed.load(Ordering::Relaxed), 1);
    assert_eq!(place.shared.conditions.all(), []);
}

#[tokio::test(start_paused = true)]
async fn a_stored_change_that_spdk_refuses_is_taken_back_in_the_store() {
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.spdk.fails_in(Step::Update);
    let error = place.update("a", 128).await.unwrap_err();
    assert!(error.to_string().contains("asked to fail"), "{error}");
    assert_eq!(place.sizes("a").await, [Some(64); 3]);

    // The rollback in the store fails too: the error says what a restart may find.
    place.spdk.fails_in(Step::Update);
    place.store.fail_after(1, 1);
    let error = place.update("a", 128).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    for part in ["asked to fail", "no space left", "restart"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(place.sizes("a").await, [Some(128), Some(64), Some(64)]);
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    assert_eq!(place.spdk.destroyed.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stored_change_that_is_cut_off_is_made() {
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.spdk.panics_in(Step::Update);
    place.update("a", 128).await.unwrap_err();
    assert_eq!(place.sizes("a").await, [Some(128), Some(128), Some(64)]);
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(128); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_kind_is_told_when_no_rollback_can_follow() {
    let place = with_an_open_rollback().await;
    let settled = || place.spdk.settled.load(Ordering::Relaxed);
    assert_eq!(settled(), 0, "the rollback is still open");
    place.settle().await;
    assert_eq!(settled(), 1);
    place.store.fail_after(0, 1);
    place.update("a", 128).await.unwrap_err();
    assert_eq!(settled(), 2, "it is rolled back");
    place.update("a", 128).await.unwrap();
    assert_eq!(settled(), 3, "it is durable");
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.update("a", 128).await.unwrap();
    assert_eq!(place.spdk.settled.load(Ordering::Relaxed), 1, "foreseen");
}

/// Creates a pending rollback: SPDK has 128 blocks, the store and memory have 64.
async fn with_an_open_rollback() -> Place {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    place.store.fail_after(0, 1);
    // The update succeeds, its rollback fails.
    place.spdk.then_fails.lock().push(Step::Update);
    let error = place.update("a", 128).await.unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(place.sizes("a").await, [Some(64), Some(64), Some(128)]);
    place
}

#[tokio::test(start_paused = true)]
async fn an_update_over_an_open_rollback_begins_after_it() {
    let place = with_an_open_rollback().await;
    // Claims of the version in SPDK are still held.
    let taken = place.create("b", 128).await.unwrap_err();
    assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
    place.spdk.fails_in(Step::Update);
    let error = place.update("a", 256).await.unwrap_err();
    assert!(error.to_string().contains("asked to fail"), "{error}");
    assert_eq!(place.sizes("a").await, [Some(64), Some(64), Some(128)]);
    place.update("a", 256).await.unwrap();
    assert_eq!(place.sizes("a").await, [Some(256); 3]);
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(256); 3]);
    assert_eq!(place.shared.conditions.all(), []);
    place.create("b", 128).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_repeated_create_over_an_open_rollback_ends_it() {
    let place = with_an_open_rollback().await;
    place.create("a", 64).await.unwrap();
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_delete_over_an_open_rollback_leaves_nothing_in_spdk() {
    let place = with_an_open_rollback().await;
    place.delete("a").await.unwrap();
    assert_eq!(place.sizes("a").await, [None; 3]);
    place.settle().await;
    place.create("b", 128).await.unwrap();
    place.create("a", 64).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_whose_end_is_not_stored_says_that_it_is_under_way() {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    place.store.fail_after(1, 1);
    let error = place.delete("a").await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::ResourceExhausted(_)), "{text}");
    assert!(text.contains("is being deleted"), "{text}");
    assert!(text.contains("could not be stored yet"), "{text}");
    assert!(!text.contains("not made"), "{text}");
    place.settle().await;
    assert_eq!(place.sizes("a").await, [None; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_delete_that_the_store_cannot_take_back_says_so() {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    place.spdk.fails_in(Step::Remove);
    place.store.fail_after(1, 1);
    let error = place.delete("a").await.unwrap_err();
    for part in ["asked to fail", "no space left", "restart"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_is_cut_off_leaves_nothing() {
    let of_the_change = |spdk: &Memories| spdk.panics_in(Step::Ensure);
    let of_a_step = |spdk: &Memories| spdk.panics_in_spdk.lock().push(Step::Ensure);
    for panics in [of_the_change, of_a_step] {
        let place = Place::new(true);
        panics(&place.spdk);
        let error = place.create("a", 64).await.unwrap_err();
        let status = tonic::Status::from(error);
        assert_eq!(status.code(), tonic::Code::Internal, "{status}");
        assert!(status.message().contains("fault of the server"), "{status}");
        assert_eq!(place.spdk.count("a"), Some(64), "SPDK had it by then");
        let condition = place.shared.conditions.of(&Place::key("a"));
        assert!(matches!(condition, Condition::Deleting { .. }));
        place.settle().await;
        assert_eq!(place.sizes("a").await, [None; 3]);
        assert_eq!(place.shared.conditions.all(), []);

        // A repeated create reconciles at once, without waiting for the queue.
        panics(&place.spdk);
        place.create("a", 64).await.unwrap_err();
        place.create("a", 128).await.unwrap();
        assert_eq!(place.sizes("a").await, [Some(128); 3]);
        place.settle().await;
        assert_eq!(place.sizes("a").await, [Some(128); 3]);
        assert_eq!(place.shared.conditions.all(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_is_cut_off_stays_one_and_waits_for_nothing() {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    let prepared = place.spdk.prepared.load(Ordering::Relaxed);
    // The first panic hits the call, the second one a retry.
    place.spdk.panics_in(Step::Remove);
    place.spdk.panics_in(Step::Remove);
    place.delete("a").await.unwrap_err();
    let condition = place.shared.conditions.of(&Place::key("a"));
    assert!(matches!(condition, Condition::Deleting { .. }));
    assert!(
        !place
            .shared
            .conditions
            .set_pending(&Place::key("a"), "a fault")
    );
    let condition = place.shared.conditions.of(&Place::key("a"));
    assert!(matches!(condition, Condition::Deleting { .. }));
    place.settle().await;
    assert_eq!(place.sizes("a").await, [None; 3]);
    assert_eq!(place.spdk.prepared.load(Ordering::Relaxed), prepared);
    assert_eq!(place.shared.conditions.all(), []);
}

#[tokio::test(start_paused = true)]
async fn no_condition_is_kept_of_what_has_no_record() {
    let place = Place::new(true);
    place
        .shared
        .conditions
        .set_pending(&Place::key("a"), "a fault");
    place.shared.queue.put(&Place::key("a"));
    place.settle().await;
    assert_eq!(place.shared.conditions.all(), []);
}

#[tokio::test(start_paused = true)]
async fn a_stored_record_that_cannot_be_used_keeps_its_name_until_it_is_deleted() {
    let place = Place::new(true);
    let entry = |key: &str, object: Vec<u8>| Entry {
        key: key.to_owned(),
        kind: "opi_api.storage.v1.MallocVolume".to_owned(),
        created: 1,
        revision: 1,
        deleting: false,
        wanted: Vec::new(),
        object,
    };
    let puts = [
        entry("mallocVolumes/a", vec![0xff]),
        entry("otherVolumes/b", Vec::new()),
    ];
    let puts = puts.into_iter().map(state::Change::Put).collect();
    place.store.commit(puts, Vec::new()).await.unwrap();
    let kinds: Vec<Arc<dyn Records>> = vec![Arc::clone(&place.volumes) as _];
    let reconciler = Reconciler::new(&place.shared, kinds);
    assert!(reconciler.load(|_| false).await.unwrap().is_empty());
    let told = || place.shared.unusable.all();
    let keys: Vec<_> = told().into_iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(keys, ["mallocVolumes/a", "otherVolumes/b"]);
    assert!(told()[1].1.reason.contains("unknown"), "{:?}", told());
    let error = place.create("a", 64).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert!(error.to_string().contains("cannot be used"), "{error}");
    place.delete("a").await.unwrap();
    place.create("a", 64).await.unwrap();
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    assert_eq!(told().len(), 1);
}
