//! Model of the effects of calls on volumes, subsystems and namespaces, and random calls.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::error::Error;

/// Includes an invalid size.
pub(super) const BLOCK_SIZES: [i64; 3] = [512, 4096, 513];
pub(super) const BLOCKS: [i64; 3] = [64, 128, 0];

#[derive(Debug, Clone, Copy)]
pub(super) enum Verb {
    Create,
    Update { allow_missing: bool },
    Delete { allow_missing: bool },
    Get,
}

/// Resource that a call addresses, with its values, by number.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Volume { id: u8, size: usize, blocks: usize },
    Subsystem { id: u8, nqn: u8, serial: u8 },
    Namespace { parent: u8, id: u8, volume: u8 },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub verb: Verb,
    pub target: Target,
    /// SPDK refuses every operation during the call.
    pub is_refused: bool,
}

/// Existing resources.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Model {
    /// Block size and number of blocks.
    pub volumes: BTreeMap<u8, (i64, i64)>,
    /// NQN and serial number.
    pub subsystems: BTreeMap<u8, (u8, u8)>,
    /// Volume of each namespace.
    pub namespaces: BTreeMap<(u8, u8), u8>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Refusal {
    NotFound,
    AlreadyExists,
    Invalid,
    InUse,
}

impl Refusal {
    pub fn of(error: &Error) -> Self {
        match error {
            Error::NotFound { .. } => Self::NotFound,
            Error::AlreadyExists { .. } => Self::AlreadyExists,
            Error::Invalid(_) => Self::Invalid,
            Error::InUse { .. } => Self::InUse,
            other => panic!("no model of this refusal: {other}"),
        }
    }
}

/// State after a call, or every valid reason to refuse it.
pub(super) type Outcome = Result<Model, Vec<Refusal>>;

impl Model {
    pub fn after(&self, call: Call) -> Outcome {
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

    /// Returns all states that are valid if the process died during the call.
    pub fn possible(&self, call: Call) -> Vec<Self> {
        let mut possible = vec![self.clone()];
        possible.extend(self.after(call));
        // A delete that SPDK refused may have been stored: the replay at the next start completes it.
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

/// Returns all targets of a call.
fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for id in 0..2 {
        for (size, blocks) in (0..9).map(|n| (n / 3, n % 3)) {
            targets.push(Target::Volume { id, size, blocks });
        }
        for (nqn, serial) in (0..6).map(|n| (n / 2, n % 2)) {
            targets.push(Target::Subsystem { id, nqn, serial });
        }
        for (parent, volume) in (0..4).map(|n| (n / 2, n % 2)) {
            targets.push(Target::Namespace { parent, id, volume });
        }
    }
    targets
}

/// Returns the call with the first target, from `first` on, for which it changes the state, or with `first` if
/// there is none.
fn apt(model: &Model, call: Call, first: usize) -> Call {
    let targets = targets();
    let about = |n: usize| Call {
        target: targets[n % targets.len()],
        ..call
    };
    let changes = |call: &Call| model.after(*call).is_ok_and(|next| next != *model);
    let mut all = (first..first + targets.len()).map(about);
    all.find(changes).unwrap_or(about(first))
}

/// Generates sequences of calls.
pub(super) fn calls() -> impl Strategy<Value = Vec<Call>> {
    let verb = prop_oneof![
        5 => Just(Verb::Create),
        4 => any::<bool>().prop_map(|allow_missing| Verb::Update { allow_missing }),
        4 => any::<bool>().prop_map(|allow_missing| Verb::Delete { allow_missing }),
        1 => Just(Verb::Get),
    ];
    let call = (
        verb,
        0..targets().len(),
        prop::bool::weighted(0.75),
        prop::bool::weighted(0.15),
    );
    prop::collection::vec(call, 3..9).prop_map(|script| {
        let mut model = Model::default();
        let mut calls = Vec::new();
        for (verb, target, is_apt, is_refused) in script {
            let mut call = Call {
                verb,
                target: targets()[target],
                is_refused,
            };
            if is_apt {
                call = apt(&model, call, target);
            }
            // `allow_missing` is tested on volumes only.
            if !matches!(call.target, Target::Volume { .. }) {
                call.verb = match call.verb {
                    Verb::Update { .. } => Verb::Update {
                        allow_missing: false,
                    },
                    Verb::Delete { .. } => Verb::Delete {
                        allow_missing: false,
                    },
                    verb => verb,
                };
            }
            if let Ok(next) = model.after(call) {
                model = next;
            }
            calls.push(call);
        }
        calls
    })
}
