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

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Key, Name, Uses, volume_ref};
use crate::error::{Error, Subject};

/// The registry. Never locked across an await or a call into SPDK.
#[derive(Debug, Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: HashMap<Name, Uses>,
    owners: HashMap<Key, Name>,
    users: HashMap<Key, BTreeSet<Name>>,
    aliases: HashMap<Key, Key>,
}

impl Registry {
    /// Reserves `uses` for `name`, on top of what it holds already.
    ///
    /// # Errors
    /// ALREADY_EXISTS when another owns one of its keys, FAILED_PRECONDITION when another takes what
    /// it wants to take, NOT_FOUND when nobody owns what it needs. Nothing is reserved then.
    pub fn reserve(self: &Arc<Self>, name: &Name, uses: &Uses) -> Result<Reserved, Error> {
        let mut inner = self.inner.lock();
        inner.admit(name, uses)?;
        let before = inner.held.get(name).cloned();
        let both = before
            .as_ref()
            .map_or_else(|| uses.clone(), |b| b.union(uses));
        inner.set(name, Some(both));
        Ok(Reserved {
            registry: Arc::clone(self),
            name: name.clone(),
            before,
            settled: false,
        })
    }

    /// Takes over what a record held before a restart. Nothing is refused: a key that another has by
    /// now stays with that one, and the record's own reservation fails when it is made again.
    pub fn restore(&self, name: &Name, uses: Uses) {
        self.inner.lock().set(name, Some(uses));
    }

    /// Whether `uses` could be reserved for `name` now.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn check(&self, name: &Name, uses: &Uses) -> Result<(), Error> {
        self.inner.lock().admit(name, uses)
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
            let reserved = self.reserve(name, &Uses::new().owns(key(*number)));
            reserved.map(Reserved::keep).is_ok()
        })
    }

    /// Forgets all that `name` holds.
    pub fn release(&self, name: &Name) {
        self.inner.lock().set(name, None);
    }

    /// Who owns the key.
    pub fn owner(&self, key: &Key) -> Option<Name> {
        self.inner.lock().owners.get(key).cloned()
    }

    /// Who is shown by the same name, and is of another kind.
    pub fn namesake(&self, name: &Name) -> Option<Name> {
        let inner = self.inner.lock();
        let mut held = inner.held.keys();
        held.find(|other| other.key() != name.key() && other.to_string() == name.to_string())
            .cloned()
    }

    /// What `name` uses, and what the owners of that use, down to the devices.
    pub fn beneath(&self, name: &Name) -> BTreeSet<Key> {
        let inner = self.inner.lock();
        let mut found = BTreeSet::new();
        let mut users = vec![name];
        while let Some(name) = users.pop() {
            for key in inner.held.get(name).into_iter().flat_map(Uses::used) {
                if found.insert(key.clone()) {
                    users.extend(inner.owners.get(&key));
                }
            }
        }
        found
    }

    /// Whether something that `name` stands on, down to the device, is an object whose typed name
    /// begins so.
    pub fn stands_on(&self, name: &Name, prefix: &str) -> bool {
        let beneath = self.beneath(name);
        let inner = self.inner.lock();
        let mut owners = beneath.iter().filter_map(|key| inner.owners.get(key));
        owners.any(|owner| owner.key().as_str().starts_with(prefix))
    }

    /// Those that own what `name` uses, beside itself.
    pub fn owners_beneath(&self, name: &Name) -> BTreeSet<Name> {
        let inner = self.inner.lock();
        let used = inner.held.get(name).into_iter().flat_map(Uses::used);
        let owners = used.filter_map(|key| inner.owners.get(&key));
        owners.filter(|owner| *owner != name).cloned().collect()
    }

    /// Those that use this key, in the order of their names.
    pub fn users_of_key(&self, key: &Key) -> Vec<Name> {
        let inner = self.inner.lock();
        let users = inner.users.get(key).into_iter().flatten();
        users.cloned().collect()
    }

    /// Others that use what `name` owns, in the order of their names.
    pub fn users_of(&self, name: &Name) -> Vec<Name> {
        let inner = self.inner.lock();
        let Some(uses) = inner.held.get(name) else {
            return Vec::new();
        };
        let users: BTreeSet<&Name> = (uses.owned.iter())
            .filter_map(|key| inner.users.get(key))
            .flatten()
            .filter(|user| *user != name)
            .collect();
        users.into_iter().cloned().collect()
    }
}

impl Inner {
    fn admit(&self, name: &Name, uses: &Uses) -> Result<(), Error> {
        for key in &uses.needed {
            if !self.owners.contains_key(key) {
                return Err(Error::not_found(key));
            }
        }
        for key in &uses.owned {
            if let Some(owner) = self.owner_of(key).filter(|owner| *owner != name) {
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
        for key in &uses.exclusive {
            if let Some(user) = self.other_taker(name, key) {
                let owner = self.owners.get(key);
                return Err(Error::InUse {
                    name: owner.map_or_else(|| Subject::from(key.as_str()), Subject::from),
                    user: user.into(),
                    remedy: "one at a time may move data through it; delete that user first".into(),
                });
            }
        }
        Ok(())
    }

    /// Who has the key, or the remote bdevs of which it would be one, or one of those that it means.
    fn owner_of(&self, key: &Key) -> Option<&Name> {
        if let Some(owner) = self.owners.get(key) {
            return Some(owner);
        }
        if let Some(space) = volume_ref::remote_space(key) {
            return self.owners.get(&space);
        }
        if !volume_ref::is_space(key) {
            return None;
        }
        let is_in = |other: &Key| volume_ref::remote_space(other).as_ref() == Some(key);
        let mut others = self.owners.iter();
        others.find_map(|(other, owner)| is_in(other).then_some(owner))
    }

    /// Who beside `name` takes the key, under whichever of its names.
    fn other_taker(&self, name: &Name, key: &Key) -> Option<&Name> {
        let meant = self.aliases.get(key).unwrap_or(key);
        let names = (self.aliases.iter())
            .filter_map(|(alias, other)| (other == meant).then_some(alias))
            .chain([meant]);
        names
            .flat_map(|key| {
                self.users
                    .get(key)
                    .into_iter()
                    .flatten()
                    .map(move |user| (key, user))
            })
            .find(|(key, user)| {
                *user != name
                    && self
                        .held
                        .get(*user)
                        .is_some_and(|u| u.exclusive.contains(*key))
            })
            .map(|(_, user)| user)
    }

    fn set(&mut self, name: &Name, uses: Option<Uses>) {
        if let Some(old) = self.held.remove(name) {
            for alias in old.aliases.keys() {
                self.aliases.remove(alias);
            }
            for key in &old.owned {
                if self.owners.get(key) == Some(name) {
                    self.owners.remove(key);
                }
            }
            for key in old.used() {
                if let Some(users) = self.users.get_mut(&key) {
                    users.remove(name);
                    if users.is_empty() {
                        self.users.remove(&key);
                    }
                }
            }
        }
        let Some(uses) = uses else { return };
        self.aliases.extend(uses.aliases.clone());
        for key in uses.owned.iter().cloned() {
            // A key that SPDK chose may meet a reservation that is about to fail: the first keeps it.
            self.owners.entry(key).or_insert_with(|| name.clone());
        }
        for key in uses.used() {
            self.users.entry(key).or_default().insert(name.clone());
        }
        self.held.insert(name.clone(), uses);
    }
}

/// What a change has reserved. Dropped unsettled, it goes back to what was held before.
#[derive(Debug)]
pub struct Reserved {
    registry: Arc<Registry>,
    name: Name,
    before: Option<Uses>,
    settled: bool,
}

impl Reserved {
    /// Leaves it reserved, for a settlement around this one to settle or to give back.
    pub fn keep(mut self) {
        self.settled = true;
    }

    /// The change is done, and the object now holds exactly this.
    pub fn settle(mut self, uses: Uses) {
        self.settled = true;
        self.registry.inner.lock().set(&self.name, Some(uses));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.settled {
            let before = self.before.take();
            self.registry.inner.lock().set(&self.name, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.into(), None)
    }

    fn hold(registry: &Arc<Registry>, who: &str, uses: Uses) -> Result<(), Error> {
        registry
            .reserve(&name(who), &uses)
            .map(|reserved| reserved.settle(uses))
    }

    #[test]
    fn two_subsystems_cannot_have_one_nqn() {
        let registry = Arc::new(Registry::default());
        hold(&registry, "nvmeSubsystems/a", Uses::new().owns("nqn/n")).unwrap();
        let error = hold(&registry, "nvmeSubsystems/b", Uses::new().owns("nqn/n")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "nqn \"n\" already belongs to nvmeSubsystems/a"
        );
        registry.release(&name("nvmeSubsystems/a"));
        hold(&registry, "nvmeSubsystems/b", Uses::new().owns("nqn/n")).unwrap();
    }

    #[test]
    fn a_volume_cannot_have_the_name_of_a_bdev_that_a_remote_controller_may_bring() {
        let controller = || Uses::new().owns(volume_ref::remote_bdevs("x"));
        let volume = |name: &str| Uses::new().owns(Key::bdev(name));
        for (first, second) in [(controller(), volume("xn1")), (volume("xn1"), controller())] {
            let registry = Arc::new(Registry::default());
            hold(&registry, "first", first).unwrap();
            let error = hold(&registry, "second", second).unwrap_err().to_string();
            assert!(error.ends_with("already belongs to first"), "{error}");
            hold(&registry, "third", volume("x")).unwrap();
            hold(&registry, "fourth", volume("yn1")).unwrap();
            hold(&registry, "fifth", volume("yn2")).unwrap();
        }
    }

    #[test]
    fn one_moves_data_through_a_bdev_and_others_may_refer_to_it() {
        let registry = Arc::new(Registry::default());
        let bdev = || Key::bdev("Malloc0");
        hold(&registry, "ns/1", Uses::new().takes(bdev())).unwrap();
        hold(&registry, "qos/1", Uses::new().shares(bdev())).unwrap();
        let error = hold(&registry, "ns/2", Uses::new().takes(bdev())).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("bdev/Malloc0 is in use by ns/1"),
            "{error}"
        );
        registry.release(&name("ns/1"));
        hold(&registry, "ns/2", Uses::new().takes(bdev())).unwrap();
    }

    #[test]
    fn one_moves_data_through_a_bdev_whichever_of_its_names_is_used() {
        let registry = Arc::new(Registry::default());
        let alias = Uses::new().owns_alias(Key::bdev("limited"), Key::bdev("base"));
        hold(&registry, "qos/1", alias).unwrap();
        hold(&registry, "ns/1", Uses::new().takes(Key::bdev("base"))).unwrap();
        for other in ["limited", "base"] {
            let error = hold(&registry, "ns/2", Uses::new().takes(Key::bdev(other))).unwrap_err();
            assert!(error.to_string().contains("in use by ns/1"), "{error}");
        }
        registry.release(&name("ns/1"));
        hold(&registry, "ns/2", Uses::new().takes(Key::bdev("limited"))).unwrap();
        assert!(hold(&registry, "ns/1", Uses::new().takes(Key::bdev("base"))).is_err());
        assert_eq!(registry.users_of(&name("qos/1")), [name("ns/2")]);
        registry.release(&name("qos/1"));
        assert!(registry.inner.lock().aliases.is_empty());
    }

    #[test]
    fn a_failed_change_gives_back_what_it_reserved_and_keeps_what_was_held() {
        let registry = Arc::new(Registry::default());
        hold(&registry, "a", Uses::new().owns("nqn/1")).unwrap();
        drop(
            registry
                .reserve(&name("a"), &Uses::new().owns("nqn/2"))
                .unwrap(),
        );
        assert_eq!(registry.owner(&Key::from("nqn/1")), Some(name("a")));
        assert_eq!(registry.owner(&Key::from("nqn/2")), None);
        drop(
            registry
                .reserve(&name("b"), &Uses::new().owns("nqn/2"))
                .unwrap(),
        );
        let inner = registry.inner.lock();
        assert_eq!(
            (inner.held.len(), inner.owners.len(), inner.users.len()),
            (1, 1, 0)
        );
    }

    #[test]
    fn what_a_kind_adds_to_a_reservation_goes_with_it() {
        let registry = Arc::new(Registry::default());
        let outer = registry
            .reserve(&name("a"), &Uses::new().owns("nqn/1"))
            .unwrap();
        registry
            .reserve(&name("a"), &Uses::new().owns("cntlid/1"))
            .unwrap()
            .keep();
        assert!(hold(&registry, "b", Uses::new().owns("cntlid/1")).is_err());
        drop(outer);
        hold(&registry, "b", Uses::new().owns("cntlid/1").owns("nqn/1")).unwrap();
    }

    #[test]
    fn an_update_frees_what_the_object_no_longer_uses() {
        let registry = Arc::new(Registry::default());
        hold(&registry, "ns", Uses::new().takes(Key::bdev("a"))).unwrap();
        hold(&registry, "ns", Uses::new().takes(Key::bdev("b"))).unwrap();
        hold(&registry, "other", Uses::new().takes(Key::bdev("a"))).unwrap();
        assert!(hold(&registry, "third", Uses::new().takes(Key::bdev("b"))).is_err());
    }

    #[test]
    fn the_users_of_a_resource_are_those_of_all_that_it_owns() {
        let registry = Arc::new(Registry::default());
        let volume = name("nullVolumes/a");
        hold(
            &registry,
            "nullVolumes/a",
            Uses::new().owns("nullVolumes/a").owns("bdev/a"),
        )
        .unwrap();
        hold(&registry, "z", Uses::new().takes("bdev/a")).unwrap();
        hold(&registry, "b", Uses::new().shares("nullVolumes/a")).unwrap();
        assert_eq!(registry.users_of(&volume), [name("b"), name("z")]);
    }

    #[test]
    fn what_is_needed_must_be_there() {
        let registry = Arc::new(Registry::default());
        let error = hold(&registry, "ns", Uses::new().needs("nullVolumes/a")).unwrap_err();
        assert_eq!(error, Error::not_found(&Key::from("nullVolumes/a")));
    }
}
