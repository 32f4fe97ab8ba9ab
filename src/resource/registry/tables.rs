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
    /// Objects by the names shown to clients: at most one of each kind.
    shown: Sets<Arc<str>, Name>,
}

impl Tables {
    pub(super) fn held(&self, name: &Name) -> Option<&Claims> {
        self.held.get(name)
    }

    /// Returns the owner of exactly this key.
    pub(super) fn owner(&self, key: &Key) -> Option<&Name> {
        self.owners.get(key)
    }

    /// Returns the users of the key, ordered by name.
    pub(super) fn users(&self, key: &Key) -> impl Iterator<Item = &Name> {
        self.indexes.users.of(key)
    }

    /// Returns an owner that conflicts with owning `key`: the owner of the key, of the space of remote bdevs
    /// that contains it, or of a bdev within the space that it stands for.
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

    /// Returns an object other than `name` that takes the key exclusively, directly or through an alias.
    pub(super) fn other_taker(&self, name: &Name, key: &Key) -> Option<&Name> {
        let meant = self.indexes.meant.get(key).unwrap_or(key);
        let mut names = self.indexes.aliases.of(meant).chain([meant]);
        names.find_map(|key| self.indexes.takers.of(key).find(|taker| *taker != name))
    }

    /// Returns an object other than `name` that has joined the key or takes it exclusively.
    pub(super) fn other_joiner(&self, name: &Name, key: &Key) -> Option<&Name> {
        let mut users = self.users(key).filter(|user| *user != name);
        users
            .find(|user| (self.held(user)).is_some_and(|held| held.joined.contains(key)))
            .or_else(|| self.other_taker(name, key))
    }

    /// Whether the owner of the key admits a single joiner.
    pub(super) fn admits_one(&self, key: &Key) -> bool {
        let claims = self.owner(key).and_then(|owner| self.held(owner));
        claims.is_some_and(|claims| claims.single.contains(key))
    }

    /// Returns the object of another kind that is shown by the same name.
    pub(super) fn namesake(&self, name: &Name) -> Option<&Name> {
        let mut shown = self.indexes.shown.of(&**name.shown());
        shown.find(|other| other.key() != name.key())
    }

    /// Replaces the claims of `name`; `None` releases them.
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
            // If a generated key collides with a reservation in flight, the earlier holder keeps it.
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

    /// Number of objects with claims, and of keys with owners.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.held.len(), self.owners.len())
    }
}

/// [`Sets::add`] or [`Sets::remove`]: adding and removing claims run the same code, so that the indexes cannot
/// drift.
type Edit<K, V> = fn(&mut Sets<K, V>, &K, &V);

impl Indexes {
    /// Indexes the claims of an object.
    fn hold(&mut self, name: &Name, claims: &Claims, edit: Edit<Key, Name>) {
        for key in claims.used() {
            edit(&mut self.users, &key, name);
        }
        for key in &claims.exclusive {
            edit(&mut self.takers, key, name);
        }
    }

    /// Indexes a key that has an owner.
    fn own(&mut self, key: &Key, alias_of: Option<&Key>, edit: Edit<Key, Key>) {
        if let Some(space) = volume_ref::remote_space(key) {
            edit(&mut self.spaces, &space, key);
        }
        if let Some(other) = alias_of {
            edit(&mut self.aliases, other, key);
        }
    }
}

/// Ordered sets by key. Invariant: no set is empty.
#[derive(Debug, PartialEq, Eq)]
struct Sets<K: Eq + Hash, V: Ord>(HashMap<K, BTreeSet<V>>);

impl<K: Eq + Hash, V: Ord> Default for Sets<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V: Ord + Clone> Sets<K, V> {
    /// Returns the members of a set in order.
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
