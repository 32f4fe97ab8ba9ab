//! Crash test: random calls over the storage engine on a simulated disk, compared with a model. Power is lost at
//! every step of the disk, where each unsynced write is lost, torn or kept, and twice more during recovery.
//! Invariant: an answered change is durable, an unanswered one is there completely or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::super::*;
use super::durable::reconciler;
use super::model::{BLOCK_SIZES, BLOCKS, Call, Model, Refusal, Target, Verb, calls};
use super::{CHOSEN, Volumes, World, called, create, of};
use crate::api::storage::{
    NullVolume, NvmeNamespace, NvmeNamespaceSpec, NvmeSubsystem, NvmeSubsystemSpec,
};
use crate::error::Error;
use crate::state::sim::{Dice, SimDisk, cases};
use crate::state::sim_store::{SimStore, empty_disk};

fn subsystem(nqn: u8, serial: u8) -> NvmeSubsystem {
    let spec = NvmeSubsystemSpec {
        nqn: format!("nqn.2014-08.org:{nqn}"),
        serial_number: ["", "one"][usize::from(serial)].to_owned(),
        psk: b"secret".to_vec(),
        ..Default::default()
    };
    NvmeSubsystem {
        spec: Some(spec),
        ..Default::default()
    }
}

fn namespace(volume: u8) -> NvmeNamespace {
    let spec = NvmeNamespaceSpec {
        volume_name_ref: format!("volumes/v{volume}"),
        ..Default::default()
    };
    NvmeNamespace {
        spec: Some(spec),
        ..Default::default()
    }
}

/// Makes one call of any kind, as a client does.
async fn send<K: Kind>(
    objects: &Arc<Collection<K>>,
    verb: Verb,
    (parent, id, name): (&str, &str, &str),
    mut object: K::Object,
    mask: &[&str],
) -> Result<(), Error> {
    let call = CallContext::default();
    match verb {
        Verb::Create => objects
            .create(call, create(parent, id, object))
            .await
            .map(drop),
        Verb::Update { allow_missing } => {
            object.set_name(name.to_owned());
            let request = Update {
                object: Some(object),
                mask: Some(mask.iter().map(|path| (*path).into()).collect()),
                allow_missing,
            };
            objects.update(call, request).await.map(drop)
        }
        Verb::Delete { allow_missing } => {
            let request = Delete {
                name: name.into(),
                allow_missing,
            };
            objects.delete(call, &request).await
        }
        Verb::Get => objects.get(name).map(drop),
    }
}

async fn make(world: &World, call: Call) -> Result<(), Error> {
    let fails = &world.engine.fails;
    fails.store(call.is_refused, Ordering::Relaxed);
    let answered = match call.target {
        Target::Volume { id, size, blocks } => {
            let object = of(BLOCK_SIZES[size], BLOCKS[blocks]);
            let (id, name) = (format!("v{id}"), format!("volumes/v{id}"));
            let mask = &["block_size", "blocks_count"];
            send(&world.volumes, call.verb, ("", &id, &name), object, mask).await
        }
        Target::Subsystem { id, nqn, serial } => {
            let (id, name) = (format!("s{id}"), format!("nvmeSubsystems/s{id}"));
            let mask = &["spec.nqn", "spec.serial_number"];
            let object = subsystem(nqn, serial);
            send(&world.subsystems, call.verb, ("", &id, &name), object, mask).await
        }
        Target::Namespace { parent, id, volume } => {
            let parent = format!("nvmeSubsystems/s{parent}");
            let (id, name) = (format!("n{id}"), format!("{parent}/nvmeNamespaces/n{id}"));
            let object = namespace(volume);
            let mask = &["spec.volume_name_ref"];
            send(
                &world.namespaces,
                call.verb,
                (&parent, &id, &name),
                object,
                mask,
            )
            .await
        }
    };
    fails.store(false, Ordering::Relaxed);
    answered
}

/// Returns the state of a world, after checking that its records, its SPDK and its store agree.
async fn found(world: &World) -> Model {
    let number = |name: &Name| name.id()[1..].parse::<u8>().unwrap();
    let mut model = Model::default();
    let mut keys = BTreeSet::new();
    for (name, object) in world.volumes.objects() {
        let size = (object.block_size, object.blocks_count);
        let expected = NullVolume {
            uuid: CHOSEN.into(),
            ..called(&name.to_string(), of(size.0, size.1))
        };
        assert_eq!(object, expected);
        model.volumes.insert(number(&name), size);
        keys.insert(name.key().to_string());
    }
    for (name, object) in world.subsystems.objects() {
        let spec = object.spec.unwrap();
        assert_eq!(spec.psk, b"secret");
        let nqn = spec.nqn.rsplit(':').next().unwrap().parse().unwrap();
        let serial = u8::from(!spec.serial_number.is_empty());
        model.subsystems.insert(number(&name), (nqn, serial));
        keys.insert(name.key().to_string());
    }
    for (name, object) in world.namespaces.objects() {
        let parent = name.parent().unwrap();
        let parent = parent.as_str().rsplit("/s").next().unwrap();
        let volume = object.spec.unwrap().volume_name_ref;
        let volume = volume.strip_prefix("volumes/v").unwrap().parse().unwrap();
        let key = (parent.parse().unwrap(), number(&name));
        model.namespaces.insert(key, volume);
        keys.insert(name.key().to_string());
    }
    let in_spdk = world.engine.made.lock().clone();
    let volumes = model.volumes.keys().map(|id| format!("v{id}"));
    assert_eq!(in_spdk, volumes.collect::<BTreeSet<_>>());
    assert_eq!(world.shared.conditions.all(), []);
    let stored = world.shared.store().scan("").await.unwrap();
    assert!(stored.iter().all(|entry| !entry.deleting), "{stored:?}");
    let stored = stored.into_iter().map(|entry| entry.key);
    assert_eq!(stored.collect::<BTreeSet<_>>(), keys);
    model
}

/// Starts a process over the store.
async fn started(store: &Arc<SimStore>) -> World {
    let shared = Shared::with(Arc::clone(store) as Arc<dyn Store>);
    let world = World::over(shared, Volumes::default());
    let reconciler = reconciler(&world);
    let names = reconciler.load(|_| false).await.unwrap();
    reconciler.replay(&names).await;
    world.shared.set_restored();
    world
}

/// Progress of a process before its crash.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// State confirmed by answers.
    sure: Model,
    answered: usize,
    /// Revision of the last answered change.
    revision: u64,
}

/// Runs `life` in a new process on this disk; `None` if the process died.
fn process<T>(disk: &SimDisk, life: impl AsyncFnOnce(&World) -> T) -> Option<T> {
    let store = SimStore::start(disk)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    // Dropping the runtime cancels the work in flight.
    runtime.block_on(store.live(async { life(&started(&store).await).await }))
}

/// Makes the calls, and compares each answer and the state after it with the model.
async fn run(world: &World, calls: &[Call], progress: &mut Progress) {
    for call in calls {
        let answer = make(world, *call).await;
        match (answer, progress.sure.after(*call)) {
            (Ok(()), Ok(next)) => progress.sure = next,
            (Err(error), Err(reasons)) => {
                assert!(reasons.contains(&Refusal::of(&error)), "{call:?}: {error}");
            }
            (answer, expected) => panic!("{call:?}: {answer:?}, and the model says {expected:?}"),
        }
        assert_eq!(found(world).await, progress.sure, "{call:?}");
        progress.answered += 1;
        progress.revision = world.shared.revision();
    }
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn a_process_stopped_at_any_step_of_the_store_comes_back_as_the_model_of_its_calls(
        calls in calls(), seed in any::<u64>()
    ) {
        let empty = empty_disk();
        let calm = empty.fork();
        process(&calm, async |world| run(world, &calls, &mut Progress::default()).await);
        let mut dice = Dice(seed);
        for step in 0..calm.steps() {
            let disk = empty.fork();
            disk.lose_power_after(step);
            let mut progress = Progress::default();
            process(&disk, async |world| run(world, &calls, &mut progress).await);
            let mut disk = disk.restart(&mut dice);
            for _ in 0..2 {
                disk.lose_power_after(dice.below(12));
                process(&disk, async |_| ());
                disk = disk.restart(&mut dice);
            }
            let rest = &calls[progress.answered..];
            let possible = match rest.first() {
                Some(call) => progress.sure.possible(*call),
                None => vec![progress.sure.clone()],
            };
            let lived = process(&disk, async |world| {
                let found = found(world).await;
                let told = progress.answered;
                assert!(
                    possible.contains(&found),
                    "power lost at step {step}, after {told} answers of {calls:?}: {found:?}, possible: {possible:?}"
                );
                assert!(world.shared.revision() >= progress.revision, "step {step}: revisions went back");
                // The restarted process accepts calls; the unanswered call is retried first.
                let rest = &rest[..rest.len().min(2)];
                run(world, rest, &mut Progress { sure: found, ..Progress::default() }).await;
            });
            prop_assert!(lived.is_some());
        }
    }
}
