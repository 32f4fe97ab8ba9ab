//! Random calls over the store engine on a simulated disk, against a model of them. The process is stopped at
//! every step of the store, with each write lost, torn or kept, and twice more in the recovery. What is replayed
//! equals the model: what was answered is there, what was not is there wholly or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::super::*;
use super::durable::reconciler;
use super::{CHOSEN, Volumes, World, called, create, of};
use crate::api::storage::{
    NullVolume, NvmeNamespace, NvmeNamespaceSpec, NvmeSubsystem, NvmeSubsystemSpec,
};
use crate::error::Error;
use crate::state::sim::{Dice, SimDisk, cases};
use crate::state::sim_store::{SimStore, empty_disk};

/// Some of them break a rule.
const BLOCK_SIZES: [i64; 3] = [512, 4096, 513];
const BLOCKS: [i64; 3] = [64, 128, 0];

#[derive(Debug, Clone, Copy)]
enum Verb {
    Create,
    Update { allow_missing: bool },
    Delete { allow_missing: bool },
    Get,
}

/// What a call is about, by the numbers of names and values.
#[derive(Debug, Clone, Copy)]
enum Target {
    Volume { id: u8, size: usize, blocks: usize },
    Subsystem { id: u8, nqn: u8, serial: u8 },
    Namespace { parent: u8, id: u8, volume: u8 },
}

#[derive(Debug, Clone, Copy)]
struct Call {
    verb: Verb,
    target: Target,
    /// SPDK refuses whatever it is asked for meanwhile.
    is_refused: bool,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    /// Block size and blocks.
    volumes: BTreeMap<u8, (i64, i64)>,
    /// NQN and serial number.
    subsystems: BTreeMap<u8, (u8, u8)>,
    /// The volume of each.
    namespaces: BTreeMap<(u8, u8), u8>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Refusal {
    NotFound,
    AlreadyExists,
    Invalid,
    InUse,
}

impl Refusal {
    fn of(error: &Error) -> Self {
        match error {
            Error::NotFound { .. } => Self::NotFound,
            Error::AlreadyExists { .. } => Self::AlreadyExists,
            Error::Invalid(_) => Self::Invalid,
            Error::InUse { .. } => Self::InUse,
            other => panic!("no model of this refusal: {other}"),
        }
    }
}

/// What there is after a call; if it is refused, every reason to.
type Outcome = Result<Model, Vec<Refusal>>;

impl Model {
    fn after(&self, call: Call) -> Outcome {
        let mut next = self.clone();
        let mut reasons = Vec::new();
        let mut refuse = |is: bool, reason| reasons.extend(is.then_some(reason));
        match call.target {
            Target::Volume { id, size, blocks } => {
                let wanted = (BLOCK_SIZES[size], BLOCKS[blocks]);
                let found = self.volumes.get(&id).copied();
                let is_used = self.namespaces.values().any(|volume| *volume == id);
                let is_made = match call.verb {
                    Verb::Create => true,
                    Verb::Update { allow_missing } => allow_missing && found.is_none(),
                    Verb::Delete { .. } | Verb::Get => false,
                };
                match (call.verb, found) {
                    (Verb::Delete { allow_missing }, None) => {
                        refuse(!allow_missing, Refusal::NotFound);
                    }
                    (Verb::Delete { .. }, Some(_)) => {
                        refuse(is_used, Refusal::InUse);
                        refuse(call.is_refused, Refusal::Invalid);
                        next.volumes.remove(&id);
                    }
                    (Verb::Get, found) => refuse(found.is_none(), Refusal::NotFound),
                    (_, None) if !is_made => refuse(true, Refusal::NotFound),
                    (verb, found) => {
                        let is_bad = wanted.0 == 513 || wanted.1 == 0;
                        let asks_spdk = found != Some(wanted);
                        refuse(is_bad || call.is_refused && asks_spdk, Refusal::Invalid);
                        match (verb, found) {
                            (Verb::Create, Some(found)) => {
                                reasons.clear();
                                let mut refuse =
                                    |is: bool, reason| reasons.extend(is.then_some(reason));
                                refuse(is_bad, Refusal::Invalid);
                                refuse(found != wanted, Refusal::AlreadyExists);
                            }
                            (_, Some(found)) => {
                                let is_rebuilt = found.0 != wanted.0;
                                reasons.extend((is_rebuilt && is_used).then_some(Refusal::InUse));
                            }
                            (_, None) => {}
                        }
                        next.volumes.insert(id, wanted);
                    }
                }
            }
            Target::Subsystem { id, nqn, serial } => {
                let found = self.subsystems.get(&id).copied();
                let mut others = self.subsystems.iter().filter(|(other, _)| **other != id);
                let is_taken = others.any(|(_, (other, _))| *other == nqn);
                let has_parts = self.namespaces.keys().any(|(parent, _)| *parent == id);
                match call.verb {
                    Verb::Create => {
                        refuse(is_taken, Refusal::AlreadyExists);
                        let differs = found.is_some_and(|found| found != (nqn, serial));
                        refuse(differs, Refusal::AlreadyExists);
                        next.subsystems.insert(id, (nqn, serial));
                    }
                    Verb::Update { .. } => {
                        refuse(found.is_none(), Refusal::NotFound);
                        refuse(is_taken, Refusal::AlreadyExists);
                        next.subsystems.insert(id, (nqn, serial));
                    }
                    Verb::Delete { .. } => {
                        refuse(found.is_none(), Refusal::NotFound);
                        refuse(has_parts, Refusal::InUse);
                        next.subsystems.remove(&id);
                    }
                    Verb::Get => refuse(found.is_none(), Refusal::NotFound),
                }
            }
            Target::Namespace { parent, id, volume } => {
                let key = (parent, id);
                let found = self.namespaces.get(&key).copied();
                let mut others = self.namespaces.iter().filter(|(other, _)| **other != key);
                let is_taken = others.any(|(_, other)| *other == volume);
                match call.verb {
                    Verb::Create | Verb::Update { .. } => {
                        let is_update = matches!(call.verb, Verb::Update { .. });
                        refuse(is_update && found.is_none(), Refusal::NotFound);
                        refuse(!self.subsystems.contains_key(&parent), Refusal::NotFound);
                        refuse(!self.volumes.contains_key(&volume), Refusal::NotFound);
                        refuse(is_taken, Refusal::InUse);
                        let differs = found.is_some_and(|found| found != volume);
                        refuse(!is_update && differs, Refusal::AlreadyExists);
                        next.namespaces.insert(key, volume);
                    }
                    Verb::Delete { .. } => {
                        refuse(found.is_none(), Refusal::NotFound);
                        next.namespaces.remove(&key);
                    }
                    Verb::Get => refuse(found.is_none(), Refusal::NotFound),
                }
            }
        }
        match reasons.is_empty() {
            true => Ok(next),
            false => Err(reasons),
        }
    }

    /// All that may be there if the process died in a call.
    fn possible(&self, call: Call) -> Vec<Self> {
        let mut possible = vec![self.clone()];
        possible.extend(self.after(call));
        // SPDK refuses a delete that has begun: the next start does not.
        let unhindered = Call {
            is_refused: false,
            ..call
        };
        if let Verb::Delete { .. } = call.verb {
            possible.extend(self.after(unhindered));
        }
        possible
    }
}

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

/// One call of any kind, as a client makes it.
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

/// What a world has, and that its parts agree with each other.
fn found(world: &World) -> Model {
    let number = |name: &Name| name.id()[1..].parse::<u8>().unwrap();
    let mut model = Model::default();
    for (name, object) in world.volumes.objects() {
        let size = (object.block_size, object.blocks_count);
        let expected = NullVolume {
            uuid: CHOSEN.into(),
            ..called(&name.to_string(), of(size.0, size.1))
        };
        assert_eq!(object, expected);
        model.volumes.insert(number(&name), size);
    }
    for (name, object) in world.subsystems.objects() {
        let spec = object.spec.unwrap();
        assert_eq!(spec.psk, b"secret");
        let nqn = spec.nqn.rsplit(':').next().unwrap().parse().unwrap();
        let serial = u8::from(!spec.serial_number.is_empty());
        model.subsystems.insert(number(&name), (nqn, serial));
    }
    for (name, object) in world.namespaces.objects() {
        let parent = name.parent().unwrap();
        let parent = parent.as_str().rsplit("/s").next().unwrap();
        let volume = object.spec.unwrap().volume_name_ref;
        let volume = volume.strip_prefix("volumes/v").unwrap().parse().unwrap();
        let key = (parent.parse().unwrap(), number(&name));
        model.namespaces.insert(key, volume);
    }
    let in_spdk = world.engine.made.lock().clone();
    let volumes = model.volumes.keys().map(|id| format!("v{id}"));
    assert_eq!(in_spdk, volumes.collect::<BTreeSet<_>>());
    assert_eq!(world.shared.conditions.all(), []);
    model
}

/// Starts a process on what the store has.
async fn started(store: &Arc<SimStore>) -> World {
    let shared = Shared::with(Arc::clone(store) as Arc<dyn Store>);
    let world = World::over(shared, Volumes::default());
    let reconciler = reconciler(&world);
    let names = reconciler.load(|_| false).await.unwrap();
    reconciler.replay(&names).await;
    world.shared.set_restored();
    world
}

/// How far a process came.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// What was answered.
    sure: Model,
    answered: usize,
    /// The revision of the last change that was answered.
    revision: u64,
}

/// Runs `life` on what is on the disk, in a process of its own; `None` if that died.
fn process<T>(disk: &SimDisk, life: impl AsyncFnOnce(&World) -> T) -> Option<T> {
    let store = SimStore::start(disk)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    // What is under way goes with the runtime.
    runtime.block_on(store.live(async { life(&started(&store).await).await }))
}

/// Makes the calls, and compares each answer, and what is there after it, with the model.
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
        assert_eq!(found(world), progress.sure, "{call:?}");
        progress.answered += 1;
        progress.revision = world.shared.revision();
    }
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let verb = prop_oneof![
        5 => Just(Verb::Create),
        3 => any::<bool>().prop_map(|allow_missing| Verb::Update { allow_missing }),
        3 => any::<bool>().prop_map(|allow_missing| Verb::Delete { allow_missing }),
        1 => Just(Verb::Get),
    ];
    let value = || prop_oneof![6 => 0..2_usize, 1 => Just(2_usize)];
    let volume = (0..2_u8, value(), value());
    // The test's kinds of parts know no allow_missing that would make one.
    let target = prop_oneof![
        3 => volume.prop_map(|(id, size, blocks)| Target::Volume { id, size, blocks }),
        2 => (0..2_u8, 0..3_u8, 0..2_u8).prop_map(|(id, nqn, serial)| Target::Subsystem { id, nqn, serial }),
        2 => (0..2_u8, 0..2_u8, 0..2_u8).prop_map(|(parent, id, volume)| Target::Namespace { parent, id, volume }),
    ];
    let call = (verb, target, prop::bool::weighted(0.15));
    let call = call.prop_map(|(verb, target, is_refused)| {
        let verb = match (verb, target) {
            (verb, Target::Volume { .. }) => verb,
            (Verb::Update { .. }, _) => Verb::Update {
                allow_missing: false,
            },
            (Verb::Delete { .. }, _) => Verb::Delete {
                allow_missing: false,
            },
            (verb, _) => verb,
        };
        Call {
            verb,
            target,
            is_refused,
        }
    });
    prop::collection::vec(call, 1..9)
}

proptest! {
    #![proptest_config(cases(2))]

    #[test]
    fn a_process_stopped_at_any_step_of_the_store_comes_back_as_the_model_of_its_calls(
        mut calls in calls(), seed in any::<u64>()
    ) {
        // Something to change, whatever follows.
        let volume = Target::Volume { id: 0, size: 0, blocks: 0 };
        calls.insert(0, Call { verb: Verb::Create, target: volume, is_refused: false });
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
                let found = found(world);
                let told = progress.answered;
                assert!(
                    possible.contains(&found),
                    "power lost at step {step}, after {told} answers of {calls:?}: {found:?}, possible: {possible:?}"
                );
                assert!(world.shared.revision() >= progress.revision, "step {step}: revisions went back");
                // And it goes on, the call that was not answered first.
                let rest = &rest[..rest.len().min(2)];
                run(world, rest, &mut Progress { sure: found, ..Progress::default() }).await;
            });
            prop_assert!(lived.is_some());
        }
    }
}
