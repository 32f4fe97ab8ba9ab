//! Property test of the registry against a model: random reserves, rollbacks, settlements and releases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::super::*;

/// Keys that a holder owns and takes, by number.
type Holding = (BTreeSet<u8>, BTreeSet<u8>);

#[derive(Debug, Clone)]
enum Step {
    /// Reserves, then settles (`true`) or rolls back.
    Reserve(u8, Holding, bool),
    Release(u8),
}

fn some() -> impl Strategy<Value = BTreeSet<u8>> {
    prop::collection::btree_set(0..6_u8, 0..3)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5_u8, (some(), some()), any::<bool>()).prop_map(|(n, h, s)| Step::Reserve(n, h, s)),
        1 => (0..5_u8).prop_map(Step::Release),
    ]
}

fn key(n: u8) -> Key {
    Key::from(format!("key/{n}"))
}

fn name(n: u8) -> Name {
    Name::new(format!("holders/{n}"), None)
}

fn claims((owned, taken): &Holding) -> Claims {
    let claims = owned
        .iter()
        .fold(Claims::new(), |claims, n| claims.owns(key(*n)));
    taken.iter().fold(claims, |claims, n| claims.takes(key(*n)))
}

/// Whether no other holder owns one of the keys to own or takes one of the keys to take.
fn is_free(model: &BTreeMap<u8, Holding>, who: u8, (owned, taken): &Holding) -> bool {
    let others = || model.iter().filter(|(other, _)| **other != who);
    let has = |n: &u8| others().any(|(_, (owned, _))| owned.contains(n));
    let takes = |n: &u8| others().any(|(_, (_, taken))| taken.contains(n));
    !owned.iter().any(has) && !taken.iter().any(takes)
}

proptest! {
    #[test]
    fn a_key_has_one_owner_and_one_taker_and_what_failed_leaves_no_trace(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let registry = Arc::new(Registry::default());
        let mut model: BTreeMap<u8, Holding> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Reserve(who, holding, settles) => {
                    let reserved = registry.reserve(&name(who), &claims(&holding));
                    prop_assert_eq!(reserved.is_ok(), is_free(&model, who, &holding));
                    if let Ok(reserved) = reserved {
                        match settles {
                            true => {
                                reserved.settle(claims(&holding));
                                model.insert(who, holding);
                            }
                            false => drop(reserved),
                        }
                    }
                }
                Step::Release(who) => {
                    registry.release(&name(who));
                    model.remove(&who);
                }
            }
            for n in 0..6 {
                let owner = model.iter().find(|(_, (owned, _))| owned.contains(&n));
                let owner = owner.map(|(who, _)| name(*who));
                prop_assert_eq!(registry.owner(&key(n)), owner);
            }
            for (who, (owned, _)) in &model {
                let claims = |(other, (_, taken)): &(&u8, &Holding)| {
                    *other != who && !taken.is_disjoint(owned)
                };
                let users = model.iter().filter(claims).map(|(other, _)| name(*other));
                prop_assert_eq!(registry.users_of(&name(*who)), users.collect::<Vec<_>>());
            }
        }
    }
}
