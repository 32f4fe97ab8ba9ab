//! What objects have and need, by the keys that the registry and the locks go by.

use std::collections::{BTreeMap, BTreeSet};

use super::Key;

/// What an object has for itself and what it needs of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    pub(super) owned: BTreeSet<Key>,
    pub(super) exclusive: BTreeSet<Key>,
    pub(super) joined: BTreeSet<Key>,
    /// Keys of its own that one alone may join.
    pub(super) single: BTreeSet<Key>,
    shared: BTreeSet<Key>,
    pub(super) needed: BTreeSet<Key>,
    pub(super) either: BTreeSet<[Key; 2]>,
    altered: BTreeSet<Key>,
    /// Keys of its own that mean another's: whoever takes the one takes the other.
    pub(super) aliases: BTreeMap<Key, Key>,
}

impl Claims {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has this key: a second owner is refused.
    #[must_use]
    pub fn owns(mut self, key: impl Into<Key>) -> Self {
        self.owned.insert(key.into());
        self
    }

    /// Moves data through this key: a second such user is refused.
    #[must_use]
    pub fn takes(mut self, key: impl Into<Key>) -> Self {
        self.exclusive.insert(key.into());
        self
    }

    /// Moves data through this key beside others, if its owner does not [let one alone](Self::admits_one).
    #[must_use]
    pub fn joins(mut self, key: impl Into<Key>) -> Self {
        self.joined.insert(key.into());
        self
    }

    /// Lets one alone join this key of its own. To be said of a key that nobody has joined yet.
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

    /// Fails with NOT_FOUND unless somebody owns this key (a resource owns its typed name).
    #[must_use]
    pub fn needs(mut self, key: impl Into<Key>) -> Self {
        self.needed.insert(key.into());
        self
    }

    /// Fails with NOT_FOUND unless somebody owns one of these keys. Refers to both.
    #[must_use]
    pub fn needs_either(mut self, one: impl Into<Key>, other: impl Into<Key>) -> Self {
        self.either.insert([one.into(), other.into()]);
        self
    }

    /// Changes what another's key stands for: nobody who uses that key changes meanwhile.
    #[must_use]
    pub fn alters(mut self, key: impl Into<Key>) -> Self {
        self.altered.insert(key.into());
        self
    }

    /// Has this key, which means `other`: one at a time may take either of them.
    #[must_use]
    pub fn owns_alias(self, key: impl Into<Key>, other: impl Into<Key>) -> Self {
        let key = key.into();
        let mut claims = self.owns(key.clone());
        claims.aliases.insert(key, other.into());
        claims
    }

    /// What a change of the object locks exclusively.
    pub(super) fn changed(&self) -> impl Iterator<Item = Key> {
        self.owned.iter().chain(&self.altered).cloned()
    }

    /// What a change of the object locks shared.
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
