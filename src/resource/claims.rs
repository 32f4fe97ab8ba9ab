//! The keys that objects own and use; the registry and the locks are indexed by them.

use std::collections::{BTreeMap, BTreeSet};

use super::Key;

/// The keys that an object owns, and the keys of other objects that it uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    pub(super) owned: BTreeSet<Key>,
    pub(super) exclusive: BTreeSet<Key>,
    pub(super) joined: BTreeSet<Key>,
    /// Owned keys that admit a single joiner.
    pub(super) single: BTreeSet<Key>,
    shared: BTreeSet<Key>,
    pub(super) needed: BTreeSet<Key>,
    pub(super) either: BTreeSet<[Key; 2]>,
    altered: BTreeSet<Key>,
    /// Owned keys that are aliases of another owner's key: taking either one takes both.
    pub(super) aliases: BTreeMap<Key, Key>,
}

impl Claims {
    /// Creates an empty set of claims.
    pub fn new() -> Self {
        Self::default()
    }

    /// Owns this key: a second owner is refused.
    #[must_use]
    pub fn owns(mut self, key: impl Into<Key>) -> Self {
        self.owned.insert(key.into());
        self
    }

    /// Uses this key exclusively for I/O: a second taker is refused.
    #[must_use]
    pub fn takes(mut self, key: impl Into<Key>) -> Self {
        self.exclusive.insert(key.into());
        self
    }

    /// Uses this key for I/O beside others, unless its owner [admits a single joiner](Self::admits_one).
    #[must_use]
    pub fn joins(mut self, key: impl Into<Key>) -> Self {
        self.joined.insert(key.into());
        self
    }

    /// Admits a single joiner of this owned key. Must be set before anything joins the key.
    #[must_use]
    pub fn admits_one(mut self, key: impl Into<Key>) -> Self {
        self.single.insert(key.into());
        self
    }

    /// Refers to this key, beside others.
    #[must_use]
    pub fn shares(mut self, key: impl Into<Key>) -> Self {
        self.shared.insert(key.into());
        self
    }

    /// Requires that this key has an owner (a resource owns its typed name); fails with NOT_FOUND.
    #[must_use]
    pub fn needs(mut self, key: impl Into<Key>) -> Self {
        self.needed.insert(key.into());
        self
    }

    /// Requires that one of these keys has an owner; fails with NOT_FOUND. Refers to both.
    #[must_use]
    pub fn needs_either(mut self, one: impl Into<Key>, other: impl Into<Key>) -> Self {
        self.either.insert([one.into(), other.into()]);
        self
    }

    /// Changes what another owner's key means: locks it exclusively, so that no user of that key changes at the
    /// same time.
    #[must_use]
    pub fn alters(mut self, key: impl Into<Key>) -> Self {
        self.altered.insert(key.into());
        self
    }

    /// Owns this key as an alias of `other`: only one object may take either of them.
    #[must_use]
    pub fn owns_alias(self, key: impl Into<Key>, other: impl Into<Key>) -> Self {
        let key = key.into();
        let mut claims = self.owns(key.clone());
        claims.aliases.insert(key, other.into());
        claims
    }

    /// Keys that a change of the object locks exclusively.
    pub(super) fn changed(&self) -> impl Iterator<Item = Key> {
        self.owned.iter().chain(&self.altered).cloned()
    }

    /// Keys that a change of the object locks shared.
    pub(super) fn used(&self) -> impl Iterator<Item = Key> {
        (self.exclusive.iter())
            .chain(&self.shared)
            .chain(&self.joined)
            .chain(&self.needed)
            .chain(self.either.iter().flatten())
            .cloned()
    }

    pub(super) fn union(&self, other: &Claims) -> Claims {
        Claims {
            owned: &self.owned | &other.owned,
            exclusive: &self.exclusive | &other.exclusive,
            joined: &self.joined | &other.joined,
            single: &self.single | &other.single,
            shared: &self.shared | &other.shared,
            needed: &self.needed | &other.needed,
            either: &self.either | &other.either,
            altered: &self.altered | &other.altered,
            aliases: self
                .aliases
                .clone()
                .into_iter()
                .chain(other.aliases.clone())
                .collect(),
        }
    }
}
