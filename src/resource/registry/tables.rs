//! The held claims and their indexes. The cost of a call depends on the keys it touches, not on the number of
//! objects.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use super::super::{Claims, Key, Name, volume_ref};

/// Claims by object and owners by key. [`set`](Tables::set) alone modifies both, and keeps the indexes
/// consistent.
#[derive(Debug, Default)]
pub(super) struct Tables {
    held: HashMap<Name, Claims>,
    owners: HashMap<Key, Name>,
    indexes: Indexes,
}

/// Indexes derived from `held` and `owners`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Indexes {
    /// All users of a key.
    users: Sets<Key, Name>,
    /// Users of a key that take it exclusively.
    takers: Sets<Key, Name>,
    /// Owned bdev keys, by the space of remote bdevs that each would belong to.
    spaces: Sets<Key, Key>,
    /// Alias to the key that it stands for.
    meant: HashMap<Key, Key>,
    /// Key to its aliases.
    aliases: Sets<Key, Key>,
    /// The objects by the names that clients see: one of each kind at most.
    shown: Sets<Arc<str>, Name>,
}

impl Tables {
    pub(super) fn held(&self, name: &Name) -> Option<&Claims> {
        self.held.get(name)
    }

    /// Who owns the very key.
    pub(super) fn owner(&self, key: &Key) -> Option<&Name> {
        self.owners.get(key)
    }

    /// Those that use the key, in the order of their names.
    pub(super) fn users(&self, key: &Key) -> impl Iterator<Item = &Name> {
        self.indexes.users.of(key)
    }

    /// Who has the key, or the remote bdevs of which it would be one, or one of those that it means.
    pub(super) fn owner_of(&self, key: &Key) -> Option<&Name> {
        if let Some(owner) = self.owners.get(key) {
            return Some(owner);
        }
        if let Some(space) = volume_ref::remote_space(key) {
            return self.owners.get(&space);
        }
        let mut bdevs = self.indexes.spaces.of(key);
        bdevs.find_map(|bdev| self.owners.get(bdev))
    }

    /// Who beside `name` takes the key, under whichever of its names.
    pub(super) fn other_taker(&self, name: &Name, key: &Key) -> Option<&Name> {
        let meant = self.indexes.meant.get(key).unwrap_or(key);
        let mut names = self.indexes.aliases.of(meant).chain([meant]);
        names.find_map(|key| self.indexes.takers.of(key).find(|taker| *taker != name))
    }

    /// Who beside `name` has joined the key, or takes it.
    pub(super) fn other_joiner(&self, name: &Name, key: &Key) -> Option<&Name> {
        let mut users = self.users(key).filter(|user| *user != name);
        users
            .find(|user| (self.held(user)).is_some_and(|held| held.joined.contains(key)))
            .or_else(|| self.other_taker(name, key))
    }

    /// Whether the owner of the key lets one alone join it.
    pub(super) fn admits_one(&self, key: &Key) -> bool {
        let claims = self.owner(key).and_then(|owner| self.held(owner));
        claims.is_some_and(|claims| claims.single.contains(key))
    }

    /// Who is shown by the same name, and is of another kind.
    pub(super) fn namesake(&self, name: &Name) -> Option<&Name> {
        let mut shown = self.indexes.shown.of(&**name.shown());
        shown.find(|other| other.key() != name.key())
    }

    /// `name` holds this from now on, in place of what it held.
    pub(super) fn set(&mut self, name: &Name, claims: Option<Claims>) {
        if let Some(old) = self.held.remove(name) {
            self.indexes.hold(name, &old, Sets::remove);
            self.indexes.shown.remove(name.shown(), name);
            for key in &old.owned {
                if self.owners.get(key) == Some(name) {
                    self.owners.remove(key);
                    self.indexes.own(key, old.aliases.get(key), Sets::remove);
                    self.indexes.meant.remove(key);
                }
            }
        }
        let Some(claims) = claims else { return };
        self.indexes.hold(name, &claims, Sets::add);
        self.indexes.shown.add(name.shown(), name);
        for key in &claims.owned {
            // A key that SPDK chose may meet a reservation that is about to fail: the first keeps it.
            if self.owners.contains_key(key) {
                continue;
            }
            self.owners.insert(key.clone(), name.clone());
            let alias_of = claims.aliases.get(key);
            self.indexes.own(key, alias_of, Sets::add);
            if let Some(other) = alias_of {
                self.indexes.meant.insert(key.clone(), other.clone());
            }
        }
        self.held.insert(name.clone(), claims);
    }

    /// How many objects hold something, and how many keys have owners.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.held.len(), self.owners.len())
    }
}

/// [`Sets::add`] or [`Sets::remove`]: what a change enters is what its end takes out.
type Edit<K, V> = fn(&mut Sets<K, V>, &K, &V);

impl Indexes {
    /// What follows from an object that holds something.
    fn hold(&mut self, name: &Name, claims: &Claims, edit: Edit<Key, Name>) {
        for key in claims.used() {
            edit(&mut self.users, &key, name);
        }
        for key in &claims.exclusive {
            edit(&mut self.takers, key, name);
        }
    }

    /// What follows from a key that has an owner.
    fn own(&mut self, key: &Key, alias_of: Option<&Key>, edit: Edit<Key, Key>) {
        if let Some(space) = volume_ref::remote_space(key) {
            edit(&mut self.spaces, &space, key);
        }
        if let Some(other) = alias_of {
            edit(&mut self.aliases, other, key);
        }
    }
}

/// Sets by keys; none of them is empty.
#[derive(Debug, PartialEq, Eq)]
struct Sets<K: Eq + Hash, V: Ord>(HashMap<K, BTreeSet<V>>);

impl<K: Eq + Hash, V: Ord> Default for Sets<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V: Ord + Clone> Sets<K, V> {
    /// The members of this set, in their order.
    fn of<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> impl Iterator<Item = &V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).into_iter().flatten()
    }

    fn add(&mut self, key: &K, value: &V) {
        match self.0.get_mut(key) {
            Some(set) => set.insert(value.clone()),
            None => (self.0.insert(key.clone(), BTreeSet::from([value.clone()]))).is_none(),
        };
    }

    fn remove(&mut self, key: &K, value: &V) {
        if let Some(set) = self.0.get_mut(key) {
            set.remove(value);
            if set.is_empty() {
                self.0.remove(key);
            }
        }
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
