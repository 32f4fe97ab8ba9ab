//! Test volumes whose SPDK is a map: each operation checks its arguments against it, and fails where it is asked to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::durable::Faulty;
use super::*;
use crate::api::storage::MallocVolume;
use crate::reconcile::Reconciler;

/// Operation of the kind that fails once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Ensure,
    Update,
    Remove,
    Withdraw,
}

/// Test volumes of which every update destroys the content, or none.
#[derive(Default)]
pub(super) struct Memories {
    has: Mutex<BTreeMap<String, MallocVolume>>,
    /// Number of updates, each of which destroys content.
    pub(super) destroyed: AtomicUsize,
    can_be_undone: bool,
    panics: Mutex<Vec<Step>>,
    pub(super) panics_in_spdk: Mutex<Vec<Step>>,
    fails: Mutex<Vec<Step>>,
    /// Operations that do their work, and fail with an unsettled error.
    unsettles: Mutex<Vec<Step>>,
    /// Operations that fail after the next update.
    pub(super) then_fails: Mutex<Vec<Step>>,
    pub(super) prepared: AtomicUsize,
    pub(super) settled: AtomicUsize,
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

    fn end(&self, step: Step) -> Result<(), Error> {
        let mut steps = self.unsettles.lock();
        let Some(at) = steps.iter().position(|it| *it == step) else {
            return Ok(());
        };
        steps.swap_remove(at);
        Err(Error::DeadlineExceeded("SPDK goes on".into()).unsettled())
    }

    pub(super) fn unsettles_in(&self, step: Step) {
        self.unsettles.lock().push(step);
    }

    pub(super) fn panics_in(&self, step: Step) {
        self.panics.lock().push(step);
    }

    pub(super) fn fails_in(&self, step: Step) {
        self.fails.lock().push(step);
    }

    pub(super) fn count(&self, id: &str) -> Option<i64> {
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
        self.end(Step::Ensure)?;
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
        self.end(Step::Update)?;
        Ok(change.wanted)
    }

    async fn withdraw(
        &self,
        _: &CallContext,
        name: &Name,
        back: &Change<MallocVolume>,
    ) -> Result<(), Error> {
        self.step(Step::Withdraw)?;
        if self.count(name.id()) == Some(back.old.blocks_count) {
            let object = called_memory(name.id(), back.wanted.blocks_count);
            self.has.lock().insert(name.id().to_owned(), object);
        }
        Ok(())
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
        self.end(Step::Remove)
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

pub(super) struct Place {
    pub(super) store: Arc<Faulty>,
    pub(super) shared: Arc<Shared>,
    pub(super) spdk: Arc<Memories>,
    pub(super) volumes: Arc<Collection<Arc<Memories>>>,
}

impl Place {
    pub(super) fn new(can_be_undone: bool) -> Self {
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

    pub(super) async fn create(&self, id: &str, blocks_count: i64) -> Result<MallocVolume, Error> {
        let request = create("", id, memory(blocks_count));
        self.volumes.create(CallContext::default(), request).await
    }

    pub(super) async fn update(&self, id: &str, blocks_count: i64) -> Result<MallocVolume, Error> {
        let request = Update {
            object: Some(called_memory(id, blocks_count)),
            mask: None,
            allow_missing: false,
        };
        self.volumes.update(CallContext::default(), request).await
    }

    pub(super) async fn delete(&self, id: &str) -> Result<(), Error> {
        self.volumes
            .delete(CallContext::default(), &named(id))
            .await
    }

    /// Returns the sizes in the store, in memory and in SPDK.
    pub(super) async fn sizes(&self, id: &str) -> [Option<i64>; 3] {
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

    pub(super) fn key(id: &str) -> Key {
        Key::from(format!("mallocVolumes/{id}"))
    }

    /// Runs the queue until it is empty.
    pub(super) async fn settle(&self) {
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
