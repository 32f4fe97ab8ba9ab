//! Ownership and use of keys by resources.
//!
//! A resource *owns* keys exclusively (its name, its bdev's name, its NQN) and *uses* keys of other owners. A
//! change reserves its claims before SPDK is called; a change that fails rolls its reservation back:
//!
//! ```text
//!            reserve            settle
//!   nothing ---------> reserved --------> held        (create, update)
//!      ^                  | drop
//!      +------------------+ back to what was held before
//! ```

mod tables;

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Claims, Key, Name};
use crate::error::{Error, Subject};
use tables::Tables;

/// The registry. Its lock is never held across an await or a call into SPDK.
#[derive(Debug, Default)]
pub struct Registry {
    tables: Mutex<Tables>,
}

impl Registry {
    /// Reserves `claims` for `name`, in addition to the claims it holds.
    ///
    /// # Errors
    /// ALREADY_EXISTS when another object owns one of the keys, FAILED_PRECONDITION when another object has
    /// taken a key to be taken, NOT_FOUND when a needed key has no owner. Nothing is reserved then.
    pub fn reserve(self: &Arc<Self>, name: &Name, claims: &Claims) -> Result<Reserved, Error> {
        let mut tables = self.tables.lock();
        admit(&tables, name, claims)?;
        let before = tables.held(name).cloned();
        let both = before
            .as_ref()
            .map_or_else(|| claims.clone(), |b| b.union(claims));
        tables.set(name, Some(both));
        Ok(Reserved {
            registry: Arc::clone(self),
            name: name.clone(),
            before,
            stays: false,
        })
    }

    /// Restores the claims of a stored record after a restart. Refuses nothing: a key that has another owner by
    /// now stays with that owner, and the record's own reservation fails when it is reconciled.
    pub fn restore(&self, name: &Name, claims: Claims) {
        self.tables.lock().set(name, Some(claims));
    }

    /// Whether `claims` could be reserved for `name` now.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn check(&self, name: &Name, claims: &Claims) -> Result<(), Error> {
        admit(&self.tables.lock(), name, claims)
    }

    /// Reserves the first of these numbers whose key is free for `name`, and returns it. Must run inside a
    /// [`Reserved`] of `name`, which settles or drops this reservation too.
    pub fn choose(
        self: &Arc<Self>,
        name: &Name,
        numbers: impl IntoIterator<Item = i32>,
        key: impl Fn(i32) -> Key,
    ) -> Option<i32> {
        numbers.into_iter().find(|number| {
            let key = key(*number);
            // Skips used numbers cheaply: most are in use, and a refusal formats an error message.
            let owner = self.owner_of(&key);
            let is_free = owner.is_none_or(|owner| owner == *name);
            let reserve = || self.reserve(name, &Claims::new().owns(key));
            is_free && reserve().map(Reserved::keep).is_ok()
        })
    }

    /// Releases all claims of `name`.
    pub fn release(&self, name: &Name) {
        self.tables.lock().set(name, None);
    }

    /// Returns the owner of the key.
    pub fn owner(&self, key: &Key) -> Option<Name> {
        self.tables.lock().owner(key).cloned()
    }

    /// Returns the keys that `name` owns.
    pub fn owned(&self, name: &Name) -> BTreeSet<Key> {
        let tables = self.tables.lock();
        (tables.held(name)).map_or_else(BTreeSet::new, |claims| claims.owned.clone())
    }

    /// Returns the owner of the key or of the key space that contains it.
    fn owner_of(&self, key: &Key) -> Option<Name> {
        self.tables.lock().owner_of(key).cloned()
    }

    /// Returns the object of another kind that is shown by the same name.
    pub fn namesake(&self, name: &Name) -> Option<Name> {
        self.tables.lock().namesake(name).cloned()
    }

    /// Returns the transitive dependencies of `name`: the keys it uses, and those that their owners use.
    pub fn transitive_keys(&self, name: &Name) -> BTreeSet<Key> {
        let tables = self.tables.lock();
        let mut found = BTreeSet::new();
        let mut users = vec![name];
        while let Some(name) = users.pop() {
            for key in tables.held(name).into_iter().flat_map(Claims::used) {
                if found.insert(key.clone()) {
                    users.extend(tables.owner(&key));
                }
            }
        }
        found
    }

    /// Whether a transitive dependency of `name` is owned by an object whose typed name has this prefix.
    pub fn depends_on(&self, name: &Name, prefix: &str) -> bool {
        let keys = self.transitive_keys(name);
        let tables = self.tables.lock();
        let mut owners = keys.iter().filter_map(|key| tables.owner(key));
        owners.any(|owner| owner.key().as_str().starts_with(prefix))
    }

    /// Returns the owners of the keys that `name` uses, without itself.
    pub fn dependencies_of(&self, name: &Name) -> BTreeSet<Name> {
        let tables = self.tables.lock();
        let used = tables.held(name).into_iter().flat_map(Claims::used);
        let owners = used.filter_map(|key| tables.owner(&key));
        owners.filter(|owner| *owner != name).cloned().collect()
    }

    /// Returns the users of this key, ordered by name.
    pub fn users_of_key(&self, key: &Key) -> Vec<Name> {
        let tables = self.tables.lock();
        let users = tables.users(key);
        users.cloned().collect()
    }

    /// Returns the other objects that use a key owned by `name`, ordered by name.
    pub fn users_of(&self, name: &Name) -> Vec<Name> {
        let tables = self.tables.lock();
        let Some(claims) = tables.held(name) else {
            return Vec::new();
        };
        let users: BTreeSet<&Name> = (claims.owned.iter())
            .flat_map(|key| tables.users(key))
            .filter(|user| *user != name)
            .collect();
        users.into_iter().cloned().collect()
    }
}

/// Checks whether `claims` could be reserved for `name` now.
fn admit(tables: &Tables, name: &Name, claims: &Claims) -> Result<(), Error> {
    for key in &claims.needed {
        if tables.owner(key).is_none() {
            return Err(Error::not_found(key));
        }
    }
    for [one, other] in &claims.either {
        if tables.owner(one).or(tables.owner(other)).is_none() {
            return Err(Error::not_found(other));
        }
    }
    for key in &claims.owned {
        if let Some(owner) = tables.owner_of(key).filter(|owner| *owner != name) {
            let (space, value) = key
                .as_str()
                .split_once('/')
                .unwrap_or(("name", key.as_str()));
            let owner = Subject::from(owner);
            return Err(Error::AlreadyExists {
                message: format!("{space} {value:?} already belongs to {owner}"),
                name: owner,
            });
        }
    }
    for key in &claims.exclusive {
        if let Some(user) = tables.other_taker(name, key) {
            return Err(in_use(tables, key, user));
        }
    }
    for key in claims.joined.iter().filter(|key| tables.admits_one(key)) {
        if let Some(user) = tables.other_joiner(name, key) {
            return Err(in_use(tables, key, user));
        }
    }
    Ok(())
}

/// Error for a key that may not be used beside this user.
fn in_use(tables: &Tables, key: &Key, user: &Name) -> Error {
    let owner = tables.owner(key);
    Error::InUse {
        name: owner.map_or_else(|| Subject::from(key.as_str()), Subject::from),
        user: user.into(),
        remedy: "one at a time may move data through it; delete that user first".into(),
    }
}

/// A reservation. Dropped before it is settled, it is rolled back to the claims held before, unless it is to be kept.
#[derive(Debug)]
pub struct Reserved {
    registry: Arc<Registry>,
    name: Name,
    before: Option<Claims>,
    /// Whether a drop keeps what is held.
    stays: bool,
}

impl Reserved {
    /// Keeps the reservation, for an enclosing one to settle or roll back.
    pub fn keep(mut self) {
        self.stays = true;
    }

    /// From here on only [`roll_back`](Self::roll_back) takes the reservation back.
    #[must_use]
    pub fn kept_when_dropped(mut self) -> Self {
        self.stays = true;
        self
    }

    /// Takes the reservation back to the claims held before.
    pub fn roll_back(mut self) {
        self.stays = false;
    }

    /// Commits the change: the object now holds exactly `claims`.
    pub fn settle(mut self, claims: Claims) {
        self.stays = true;
        self.registry.tables.lock().set(&self.name, Some(claims));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.stays {
            let before = self.before.take();
            self.registry.tables.lock().set(&self.name, before);
        }
    }
}

#[cfg(test)]
mod tests;
