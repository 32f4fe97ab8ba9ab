//! Who has what, and who uses whom.
//!
//! A resource *owns* keys that nobody else may own (its name, its bdev's name, its NQN) and *uses*
//! keys of others. The registry is asked before SPDK is touched, and what a change has reserved is
//! given back when the change fails:
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

/// The registry. Never locked across an await or a call into SPDK.
#[derive(Debug, Default)]
pub struct Registry {
    tables: Mutex<Tables>,
}

impl Registry {
    /// Reserves `uses` for `name`, on top of what it holds already.
    ///
    /// # Errors
    /// ALREADY_EXISTS when another owns one of its keys, FAILED_PRECONDITION when another takes what
    /// it wants to take, NOT_FOUND when nobody owns what it needs. Nothing is reserved then.
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
            settled: false,
        })
    }

    /// Takes over what a record held before a restart. Nothing is refused: a key that another has by
    /// now stays with that one, and the record's own reservation fails when it is made again.
    pub fn restore(&self, name: &Name, claims: Claims) {
        self.tables.lock().set(name, Some(claims));
    }

    /// Whether `uses` could be reserved for `name` now.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn check(&self, name: &Name, claims: &Claims) -> Result<(), Error> {
        admit(&self.tables.lock(), name, claims)
    }

    /// The first of these numbers whose key nobody has: `name` has reserved it, inside a reservation
    /// that is settled or given back.
    pub fn choose(
        self: &Arc<Self>,
        name: &Name,
        numbers: impl IntoIterator<Item = i32>,
        key: impl Fn(i32) -> Key,
    ) -> Option<i32> {
        numbers.into_iter().find(|number| {
            let key = key(*number);
            // Most are in use: that is seen without a refusal in words.
            let owner = self.owner_of(&key);
            let is_free = owner.is_none_or(|owner| owner == *name);
            let reserve = || self.reserve(name, &Claims::new().owns(key));
            is_free && reserve().map(Reserved::keep).is_ok()
        })
    }

    /// Forgets all that `name` holds.
    pub fn release(&self, name: &Name) {
        self.tables.lock().set(name, None);
    }

    /// Who owns the key.
    pub fn owner(&self, key: &Key) -> Option<Name> {
        self.tables.lock().owner(key).cloned()
    }

    /// What `name` has for itself.
    pub fn owned(&self, name: &Name) -> BTreeSet<Key> {
        let tables = self.tables.lock();
        (tables.held(name)).map_or_else(BTreeSet::new, |claims| claims.owned.clone())
    }

    /// Who owns the key, or what it is a part of.
    fn owner_of(&self, key: &Key) -> Option<Name> {
        self.tables.lock().owner_of(key).cloned()
    }

    /// Who is shown by the same name, and is of another kind.
    pub fn namesake(&self, name: &Name) -> Option<Name> {
        self.tables.lock().namesake(name).cloned()
    }

    /// What `name` uses, and what the owners of that use, down to the devices.
    pub fn beneath(&self, name: &Name) -> BTreeSet<Key> {
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

    /// Whether something that `name` stands on, down to the device, is an object whose typed name
    /// begins so.
    pub fn stands_on(&self, name: &Name, prefix: &str) -> bool {
        let beneath = self.beneath(name);
        let tables = self.tables.lock();
        let mut owners = beneath.iter().filter_map(|key| tables.owner(key));
        owners.any(|owner| owner.key().as_str().starts_with(prefix))
    }

    /// Those that own what `name` uses, beside itself.
    pub fn owners_beneath(&self, name: &Name) -> BTreeSet<Name> {
        let tables = self.tables.lock();
        let used = tables.held(name).into_iter().flat_map(Claims::used);
        let owners = used.filter_map(|key| tables.owner(&key));
        owners.filter(|owner| *owner != name).cloned().collect()
    }

    /// Those that use this key, in the order of their names.
    pub fn users_of_key(&self, key: &Key) -> Vec<Name> {
        let tables = self.tables.lock();
        let users = tables.users(key);
        users.cloned().collect()
    }

    /// Others that use what `name` owns, in the order of their names.
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

/// Whether `uses` could be reserved for `name` now.
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

/// The answer to one who may not use a key beside this user.
fn in_use(tables: &Tables, key: &Key, user: &Name) -> Error {
    let owner = tables.owner(key);
    Error::InUse {
        name: owner.map_or_else(|| Subject::from(key.as_str()), Subject::from),
        user: user.into(),
        remedy: "one at a time may move data through it; delete that user first".into(),
    }
}

/// What a change has reserved. Dropped unsettled, it goes back to what was held before.
#[derive(Debug)]
pub struct Reserved {
    registry: Arc<Registry>,
    name: Name,
    before: Option<Claims>,
    settled: bool,
}

impl Reserved {
    /// Leaves it reserved, for a settlement around this one to settle or to give back.
    pub fn keep(mut self) {
        self.settled = true;
    }

    /// The change is done, and the object now holds exactly this.
    pub fn settle(mut self, claims: Claims) {
        self.settled = true;
        self.registry.tables.lock().set(&self.name, Some(claims));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.settled {
            let before = self.before.take();
            self.registry.tables.lock().set(&self.name, before);
        }
    }
}

#[cfg(test)]
mod tests;
