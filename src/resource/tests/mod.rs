//! Test kinds whose objects are kept in the test, and a world of them. [`verbs`] tests with them what every kind
//! gets from its collection.

mod agreement;
mod deaths;
mod durable;
mod mask;
mod memories;
mod model;
mod ownership;
mod replay;
mod slices;
mod start;
mod unsettled;
mod verbs;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::volume_ref::VolumeRef;
use super::*;
use crate::api::storage::{
    NullVolume, NvmeNamespace, NvmeNamespaceSpec, NvmeSubsystem, NvmeSubsystemSpec, VolumeStats,
};
use crate::error::Violations;

/// Test volumes that can be resized at any time, are rebuilt for another block size, and have an immutable UUID.
#[derive(Default)]
struct Volumes {
    made: Mutex<BTreeSet<String>>,
    updates: AtomicUsize,
    /// Number of updates that were rollbacks.
    undone: AtomicUsize,
    fails: AtomicBool,
    fails_after_update: AtomicBool,
    panics: AtomicBool,
    /// Whether each update destroys content, and so is stored first.
    destroys: AtomicBool,
    /// If set, a create in progress waits for a permit.
    gate: Option<Arc<Gate>>,
}

/// UUID that the server assigns when the client gives none.
const CHOSEN: &str = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";

struct Gate {
    entered: Semaphore,
    may_go_on: Semaphore,
}

impl Volumes {
    /// Lets the next update succeed and every later operation fail.
    fn fails_after_one_update(&self) {
        self.fails_after_update.store(true, Ordering::Relaxed);
    }

    fn fault(&self) -> Result<(), Error> {
        assert!(!self.panics.load(Ordering::Relaxed), "asked to panic");
        if self.fails.load(Ordering::Relaxed) {
            return Err(Error::invalid("blocks_count", "does not fit"));
        }
        Ok(())
    }
}

impl Kind for Arc<Volumes> {
    type Object = NullVolume;

    const STAGE: Stage = Stage::Base;

    fn check(&self, object: &NullVolume, violations: &mut Violations) {
        if object.block_size % 512 != 0 || object.block_size == 0 {
            violations.add(
                "block_size",
                format!("{} is no multiple of 512", object.block_size),
            );
        }
    }

    fn claims(&self, name: &Name, object: &NullVolume) -> Claims {
        let claims = Claims::new().owns(Key::bdev(name.id()));
        match object.uuid.as_str() {
            "" | CHOSEN => claims,
            uuid => claims.owns(format!("uuid/{uuid}")),
        }
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        mut wanted: NullVolume,
    ) -> Result<NullVolume, Error> {
        if !wanted.name.is_empty() && self.made.lock().contains(name.id()) {
            return Ok(wanted);
        }
        if let Some(gate) = &self.gate {
            gate.entered.add_permits(1);
            gate.may_go_on.acquire().await.unwrap().forget();
        }
        self.fault()?;
        assert!(self.made.lock().insert(name.id().into()), "made twice");
        if wanted.uuid.is_empty() {
            wanted.uuid = CHOSEN.into();
        }
        Ok(wanted)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<NullVolume>,
    ) -> Result<NullVolume, Error> {
        assert!(!change.fields.is_empty());
        self.fault()?;
        if change.fields.has("uuid") {
            return Err(Error::immutable("uuid"));
        }
        if !change.fields.only(&["blocks_count"]) {
            change.unused(name)?;
        }
        self.updates.fetch_add(1, Ordering::Relaxed);
        let undone = usize::from(change.is_undo && !change.names("blocks_count"));
        self.undone.fetch_add(undone, Ordering::Relaxed);
        if self.fails_after_update.swap(false, Ordering::Relaxed) {
            self.fails.store(true, Ordering::Relaxed);
        }
        Ok(change.wanted)
    }

    async fn foresee(
        &self,
        _: &CallContext,
        _: &Name,
        change: &Change<NullVolume>,
    ) -> Result<Option<NullVolume>, Error> {
        let destroys = self.destroys.load(Ordering::Relaxed);
        Ok(destroys.then(|| change.wanted.clone()))
    }

    async fn withdraw(
        &self,
        _: &CallContext,
        _: &Name,
        _: &Change<NullVolume>,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(&self, _: &CallContext, name: &Name, _: &NullVolume) -> Result<(), Error> {
        self.fault()?;
        self.made.lock().remove(name.id());
        Ok(())
    }

    async fn stats(&self, _: &Name, _: &NullVolume) -> Result<VolumeStats, Error> {
        Ok(VolumeStats::default())
    }
}

struct Subsystems;

impl Kind for Subsystems {
    type Object = NvmeSubsystem;

    const STAGE: Stage = Stage::Export;

    fn check(&self, _: &NvmeSubsystem, _: &mut Violations) {}

    fn claims(&self, _: &Name, object: &NvmeSubsystem) -> Claims {
        let spec = object.spec.clone().unwrap_or_default();
        Claims::new().owns(format!("nqn/{}", spec.nqn))
    }

    async fn ensure(
        &self,
        _: &CallContext,
        _: &Name,
        wanted: NvmeSubsystem,
    ) -> Result<NvmeSubsystem, Error> {
        Ok(wanted)
    }

    async fn update(
        &self,
        _: &CallContext,
        _: &Name,
        change: Change<NvmeSubsystem>,
    ) -> Result<NvmeSubsystem, Error> {
        Ok(change.wanted)
    }

    async fn withdraw(
        &self,
        _: &CallContext,
        _: &Name,
        _: &Change<NvmeSubsystem>,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(&self, _: &CallContext, _: &Name, _: &NvmeSubsystem) -> Result<(), Error> {
        Ok(())
    }

    async fn stats(&self, _: &Name, _: &NvmeSubsystem) -> Result<VolumeStats, Error> {
        Ok(VolumeStats::default())
    }

    fn hide_secrets(object: &mut NvmeSubsystem) {
        if let Some(spec) = &mut object.spec {
            spec.psk.clear();
        }
    }
}

/// Test namespaces of the volumes that this SPDK has.
struct Namespaces(Arc<Volumes>);

impl Namespaces {
    /// Fails as SPDK does for a volume that it does not have.
    fn find(&self, object: &NvmeNamespace) -> Result<(), Error> {
        let text = object
            .spec
            .as_ref()
            .map(|spec| spec.volume_name_ref.as_str());
        let volume = VolumeRef::parse(text.unwrap_or_default()).unwrap();
        match self.0.made.lock().contains(volume.bdev()) {
            true => Ok(()),
            false => Err(Error::not_found(&Key::bdev(volume.bdev()))),
        }
    }
}

impl Kind for Namespaces {
    type Object = NvmeNamespace;

    const STAGE: Stage = Stage::Part;

    fn check(&self, _: &NvmeNamespace, _: &mut Violations) {}

    fn claims(&self, _: &Name, object: &NvmeNamespace) -> Claims {
        let spec = object.spec.clone().unwrap_or_default();
        VolumeRef::parse(&spec.volume_name_ref)
            .unwrap()
            .taken_in(Claims::new())
    }

    async fn ensure(
        &self,
        _: &CallContext,
        _: &Name,
        wanted: NvmeNamespace,
    ) -> Result<NvmeNamespace, Error> {
        self.find(&wanted)?;
        Ok(wanted)
    }

    async fn update(
        &self,
        _: &CallContext,
        _: &Name,
        change: Change<NvmeNamespace>,
    ) -> Result<NvmeNamespace, Error> {
        self.find(&change.wanted)?;
        Ok(change.wanted)
    }

    async fn withdraw(
        &self,
        _: &CallContext,
        _: &Name,
        _: &Change<NvmeNamespace>,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(&self, _: &CallContext, _: &Name, _: &NvmeNamespace) -> Result<(), Error> {
        Ok(())
    }

    async fn stats(&self, _: &Name, _: &NvmeNamespace) -> Result<VolumeStats, Error> {
        Ok(VolumeStats::default())
    }
}

struct World {
    shared: Arc<Shared>,
    engine: Arc<Volumes>,
    volumes: Arc<Collection<Arc<Volumes>>>,
    subsystems: Arc<Collection<Subsystems>>,
    namespaces: Arc<Collection<Namespaces>>,
}

impl World {
    fn new() -> Self {
        Self::with(Volumes::default())
    }

    fn with(engine: Volumes) -> Self {
        Self::over(Shared::new(), engine)
    }

    fn over(shared: Arc<Shared>, engine: Volumes) -> Self {
        let engine = Arc::new(engine);
        Self {
            volumes: Collection::new(Arc::clone(&engine), &shared),
            subsystems: Collection::new(Subsystems, &shared),
            namespaces: Collection::new(Namespaces(Arc::clone(&engine)), &shared),
            shared,
            engine,
        }
    }

    /// Creates a world whose creates wait at a gate.
    fn gated() -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate {
            entered: Semaphore::new(0),
            may_go_on: Semaphore::new(0),
        });
        let world = Self::with(Volumes {
            gate: Some(Arc::clone(&gate)),
            ..Default::default()
        });
        (world, gate)
    }

    async fn volume(&self, id: &str, object: NullVolume) -> Result<NullVolume, Error> {
        self.volumes
            .create(CallContext::default(), create("", id, object))
            .await
    }

    async fn change(&self, object: NullVolume, mask: &[&str]) -> Result<NullVolume, Error> {
        let request = Update {
            object: Some(object),
            mask: Some(mask.iter().map(|path| (*path).into()).collect()),
            allow_missing: false,
        };
        self.volumes.update(CallContext::default(), request).await
    }

    async fn delete(&self, name: &str) -> Result<(), Error> {
        self.volumes
            .delete(CallContext::default(), &named(name))
            .await
    }

    async fn subsystem(&self, id: &str, nqn: &str) -> Result<NvmeSubsystem, Error> {
        let object = NvmeSubsystem {
            spec: Some(NvmeSubsystemSpec {
                nqn: nqn.into(),
                psk: b"secret".to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.subsystems
            .create(CallContext::default(), create("", id, object))
            .await
    }

    async fn namespace(
        &self,
        parent: &str,
        id: &str,
        volume: &str,
    ) -> Result<NvmeNamespace, Error> {
        let object = NvmeNamespace {
            spec: Some(NvmeNamespaceSpec {
                volume_name_ref: volume.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.namespaces
            .create(CallContext::default(), create(parent, id, object))
            .await
    }
}

fn create<T>(parent: &str, id: &str, object: T) -> Create<T> {
    Create {
        parent: parent.into(),
        id: id.into(),
        object: Some(object),
    }
}

fn named(name: &str) -> Delete {
    Delete {
        name: name.into(),
        allow_missing: false,
    }
}

fn of(block_size: i64, blocks_count: i64) -> NullVolume {
    NullVolume {
        block_size,
        blocks_count,
        ..Default::default()
    }
}

fn called(name: &str, object: NullVolume) -> NullVolume {
    NullVolume {
        name: name.into(),
        ..object
    }
}

fn text<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.unwrap_err().to_string()
}
