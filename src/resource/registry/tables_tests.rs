//! Property test: after random changes the indexes give the same results as a linear search. A second test
//! checks that a query's cost does not grow with the number of objects.

use proptest::prelude::*;

use super::*;

/// A small set of names and keys, so that they collide: two kinds with a shared shown name, bdevs of a remote
/// controller and others, and aliases of both.
fn name(number: u8) -> Name {
    let kind = ["nullVolumes", "aioVolumes", "nvmeSubsystems"][usize::from(number % 3)];
    let id = number / 3;
    let shown = (kind != "nvmeSubsystems").then(|| format!("volumes/{id}"));
    Name::new(format!("{kind}/{id}"), shown)
}

fn key(number: u8) -> Key {
    match number % 6 {
        0 => Key::bdev("r0n1"),
        1 => Key::bdev("r0n2"),
        2 => Key::bdev("r1n1"),
        3 => volume_ref::remote_bdevs("r0"),
        4 => Key::bdev("plain"),
        _ => Key::from("nqn/a"),
    }
}

fn claims() -> impl Strategy<Value = Claims> {
    let use_of = (0..8_u8, 0..6_u8, 0..6_u8);
    proptest::collection::vec(use_of, 0..5).prop_map(|list| {
        (list.into_iter()).fold(Claims::new(), |claims, (how, one, other)| match how {
            0 | 1 => claims.owns(key(one)),
            2 => claims.takes(key(one)),
            3 => claims.shares(key(one)),
            4 => claims.needs(key(one)),
            5 => claims.joins(key(one)),
            6 => claims.needs_either(key(one), key(other)),
            _ => claims.owns_alias(key(one), key(other)),
        })
    })
}

/// Reference implementation of [`Tables::owner_of`]: linear search.
fn owners_of<'t>(tables: &'t Tables, key: &Key) -> Vec<&'t Name> {
    if let Some(owner) = tables.owners.get(key) {
        return vec![owner];
    }
    let is_met = |other: &Key| {
        volume_ref::remote_space(key).as_ref() == Some(other)
            || volume_ref::remote_space(other).as_ref() == Some(key)
    };
    let met = tables.owners.iter().filter(|(other, _)| is_met(other));
    met.map(|(_, owner)| owner).collect()
}

/// Reference implementation: resolves an alias by linear search.
fn meant(tables: &Tables, key: &Key) -> Key {
    let claims = tables.owners.get(key).and_then(|by| tables.held.get(by));
    let other = claims.and_then(|claims| claims.aliases.get(key));
    other.unwrap_or(key).clone()
}

/// Reference implementation: all takers of the key that `key` stands for, by linear search.
fn takers<'t>(tables: &'t Tables, key: &Key) -> BTreeSet<&'t Name> {
    let wanted = meant(tables, key);
    let takes = |claims: &Claims| {
        let mut keys = claims.exclusive.iter();
        keys.any(|taken| *taken == wanted || meant(tables, taken) == wanted)
    };
    let taking = tables.held.iter().filter(|(_, claims)| takes(claims));
    taking.map(|(name, _)| name).collect()
}

fn check(tables: &Tables) -> Result<(), TestCaseError> {
    for key in (0..6).map(key) {
        let truth = owners_of(tables, &key);
        match tables.owner_of(&key) {
            Some(owner) => prop_assert!(truth.contains(&owner), "{key}: {owner} of {truth:?}"),
            None => prop_assert!(truth.is_empty(), "{key}: none of {truth:?}"),
        }
        let users: Vec<&Name> = tables.users(&key).collect();
        let truth = tables.held.iter();
        let truth = truth.filter(|(_, claims)| claims.used().any(|used| used == key));
        let truth: BTreeSet<&Name> = truth.map(|(name, _)| name).collect();
        prop_assert_eq!(users, truth.into_iter().collect::<Vec<_>>());
        for by in (0..9).map(name) {
            let mut truth = takers(tables, &key);
            truth.remove(&by);
            match tables.other_taker(&by, &key) {
                Some(taker) => prop_assert!(truth.contains(taker), "{key}: {taker} of {truth:?}"),
                None => prop_assert!(truth.is_empty(), "{key} by {by}: none of {truth:?}"),
            }
        }
    }
    for of in (0..9).map(name) {
        let is_other = |other: &&Name| **other != of && other.to_string() == of.to_string();
        let truth: BTreeSet<&Name> = tables.held.keys().filter(is_other).collect();
        let found = tables.namesake(&of);
        prop_assert_eq!(found, truth.first().copied());
    }
    Ok(())
}

proptest! {
    #[test]
    fn an_index_finds_what_a_search_through_everything_does(
        changes in proptest::collection::vec((0..9_u8, proptest::option::of(claims())), 1..40),
    ) {
        let mut tables = Tables::default();
        for (of, claims) in changes {
            tables.set(&name(of), claims);
            check(&tables)?;
        }
        for of in 0..9 {
            tables.set(&name(of), None);
        }
        prop_assert_eq!(&tables.indexes, &Indexes::default(), "nothing is left of what is gone");
        prop_assert_eq!(tables.len(), (0, 0));
    }
}

/// Measures a few calls of each query among this many objects.
fn asked_among(objects: u32) -> std::time::Duration {
    let mut tables = Tables::default();
    for number in 0..objects {
        let name = Name::new(
            format!("nullVolumes/v{number}"),
            Some(format!("volumes/v{number}")),
        );
        let claims = Claims::new().owns(name.key().clone());
        let claims = claims.owns_alias(Key::bdev(name.id()), Key::bdev(&format!("b{number}")));
        tables.set(&name, Some(claims.takes(Key::bdev(&format!("b{number}")))));
    }
    let other = Name::new("aioVolumes/none".into(), Some("volumes/none".into()));
    let begun = std::time::Instant::now();
    for number in 0..200 {
        let owned = Claims::new().owns(volume_ref::remote_bdevs(&format!("r{number}")));
        assert_eq!(
            tables.owner_of(&volume_ref::remote_bdevs(&format!("r{number}"))),
            None
        );
        let taken = Key::bdev(&format!("b{}", number % objects));
        assert!(tables.other_taker(&other, &taken).is_some());
        assert_eq!(tables.namesake(&other), None);
        tables.set(&other, Some(owned));
        tables.set(&other, None);
    }
    begun.elapsed()
}

#[test]
fn a_call_among_many_objects_costs_what_one_among_few_does() {
    let few = (0..5).map(|_| asked_among(100)).min();
    let many = (0..5).map(|_| asked_among(20_000)).min();
    let (few, many) = (few.unwrap_or_default(), many.unwrap_or_default());
    // A linear search would be 200 times slower; cache misses alone cost a small factor.
    assert!(many < few * 20, "{many:?} among many, {few:?} among few");
}
