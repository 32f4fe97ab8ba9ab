//! Reader-writer locks by key; a lock exists while it is held or waited for.
//!
//! A change locks the keys it changes exclusively and the keys it refers to shared, all in one call and in the
//! order of the keys, so that a deadlock is impossible. Changes of different keys contend only for a short
//! access to the table. Waiting has a deadline: changes behind one that hangs fail with the name of the holder
//! instead of piling up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::{Instant, timeout_at};

use super::Key;
use crate::telemetry::traces;

type Lock = Arc<RwLock<()>>;

/// Table of the locks that are held or waited for.
#[derive(Debug, Default)]
pub struct Locks {
    table: Mutex<HashMap<Key, Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    lock: Lock,
    /// Change that acquired the lock last, while it holds it.
    holder: Option<Key>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "the guards are there to be dropped")]
enum Guard {
    Shared(OwnedRwLockReadGuard<()>),
    Exclusive(OwnedRwLockWriteGuard<()>),
}

/// Error: a lock was not free before the deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// Key of the busy lock.
    pub key: Key,
    /// Change that holds the lock, if known: of several shared holders only the last one is.
    pub holder: Option<Key>,
}

/// Guard of the acquired locks; dropping it releases them.
#[derive(Debug)]
pub struct Held {
    locks: Arc<Locks>,
    owner: Key,
    entries: Vec<(Key, Lock, Option<Guard>)>,
}

impl Locks {
    /// Acquires all of these locks for a change of `owner`, or none. `by` is the deadline. A key in both lists
    /// is locked exclusively.
    ///
    /// # Errors
    /// The first lock that was not free by the deadline.
    pub async fn acquire(
        self: &Arc<Self>,
        owner: &Key,
        by: Instant,
        exclusive: impl IntoIterator<Item = Key>,
        shared: impl IntoIterator<Item = Key>,
    ) -> Result<Held, Busy> {
        let mut wanted: BTreeMap<Key, bool> = shared.into_iter().map(|key| (key, false)).collect();
        wanted.extend(exclusive.into_iter().map(|key| (key, true)));
        let waiting = async {
            let mut held = Held {
                locks: Arc::clone(self),
                owner: owner.clone(),
                entries: Vec::with_capacity(wanted.len()),
            };
            for (key, exclusive) in wanted {
                let lock = Arc::clone(&self.table.lock().entry(key.clone()).or_default().lock);
                held.entries.push((key.clone(), Arc::clone(&lock), None));
                let free = async {
                    match exclusive {
                        true => Guard::Exclusive(lock.write_owned().await),
                        false => Guard::Shared(lock.read_owned().await),
                    }
                };
                let guard = timeout_at(by, free).await;
                let mut table = self.table.lock();
                let slot = table.get_mut(&key);
                let Ok(guard) = guard else {
                    let holder = slot.and_then(|slot| slot.holder.clone());
                    drop(table);
                    return Err(Busy { key, holder });
                };
                if let Some(slot) = slot {
                    slot.holder = Some(owner.clone());
                }
                if let Some(entry) = held.entries.last_mut() {
                    entry.2 = Some(guard);
                }
            }
            Ok(held)
        };
        traces::child("lock wait", waiting).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.locks.table.lock();
        for (key, lock, guard) in self.entries.drain(..) {
            if guard.is_some()
                && let Some(slot) = table.get_mut(&key)
                && slot.holder.as_ref() == Some(&self.owner)
            {
                slot.holder = None;
            }
            drop(guard);
            // Two references, the table's and this one: there is no other holder or waiter.
            if Arc::strong_count(&lock) == 2 {
                table.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::{Pin, pin};
    use std::task::{Context, Waker};
    use std::time::Duration;

    fn keys(names: &[&str]) -> Vec<Key> {
        names.iter().map(|name| Key::from(*name)).collect()
    }

    async fn take(
        locks: &Arc<Locks>,
        exclusive: impl IntoIterator<Item = Key>,
        shared: impl IntoIterator<Item = Key>,
    ) -> Held {
        let by = Instant::now() + Duration::from_secs(60);
        let owner = Key::from("owner");
        let taken = locks.acquire(&owner, by, exclusive, shared).await;
        taken.expect("it is free in time")
    }

    fn waits(future: Pin<&mut impl Future>) -> bool {
        future
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    }

    #[tokio::test]
    async fn changes_of_different_names_run_side_by_side() {
        let locks = Arc::new(Locks::default());
        let a = take(&locks, keys(&["a"]), keys(&["parent"])).await;
        let b = take(&locks, keys(&["b"]), keys(&["parent"])).await;
        drop((a, b));
        assert!(locks.table.lock().is_empty());
    }

    #[tokio::test]
    async fn a_name_is_held_by_one_change_at_a_time() {
        let locks = Arc::new(Locks::default());
        let first = take(&locks, keys(&["a"]), []).await;
        let mut second = pin!(take(&locks, keys(&["a"]), []));
        assert!(waits(second.as_mut()));
        drop(first);
        drop(second.await);
        assert!(locks.table.lock().is_empty());
    }

    #[tokio::test]
    async fn what_is_referred_to_waits_for_its_users_only_when_it_changes() {
        let locks = Arc::new(Locks::default());
        let user = take(&locks, keys(&["a"]), keys(&["volume"])).await;
        let mut change = pin!(take(&locks, keys(&["volume"]), []));
        assert!(waits(change.as_mut()));
        drop(user);
        drop(change.await);
    }

    #[tokio::test]
    async fn a_change_that_is_given_up_leaves_no_lock() {
        let locks = Arc::new(Locks::default());
        let held = take(&locks, keys(&["b"]), []).await;
        {
            let mut waiting = pin!(take(&locks, keys(&["a", "b"]), []));
            assert!(waits(waiting.as_mut()));
        }
        drop(held);
        assert!(locks.table.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline_and_tells_whose_change_has_the_lock() {
        let locks = Arc::new(Locks::default());
        let [first, second, third] = ["first", "second", "third"].map(Key::from);
        let soon = || Instant::now() + Duration::from_secs(2);
        let held = locks.acquire(&first, soon(), keys(&["b"]), []).await;
        let held = held.expect("it is free");
        for shared in [false, true] {
            let before = Instant::now();
            let wanted = keys(&["a", "b"]);
            let late = match shared {
                true => locks.acquire(&second, soon(), [], wanted).await,
                false => locks.acquire(&second, soon(), wanted, []).await,
            };
            let busy = Busy {
                key: Key::from("b"),
                holder: Some(first.clone()),
            };
            assert_eq!(late.expect_err("it is held"), busy);
            assert_eq!(before.elapsed(), Duration::from_secs(2));
        }
        // The timed-out acquire released the locks it had got, and the holder of the busy lock is still known.
        let a = locks.acquire(&third, soon(), keys(&["a"]), []).await;
        drop(a.expect("it is free"));
        let late = locks.acquire(&third, soon(), keys(&["b"]), []).await;
        assert_eq!(late.expect_err("it is held").holder, Some(first));
        drop(held);
        // A free lock is acquired even after the deadline.
        let past = Instant::now();
        let free = locks.acquire(&third, past, keys(&["b"]), []).await;
        drop(free.expect("it is free"));
        assert!(locks.table.lock().is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn changes_that_want_the_same_names_in_other_orders_all_finish() {
        let locks = Arc::new(Locks::default());
        let tasks: Vec<_> = (0..64)
            .map(|i| {
                let locks = Arc::clone(&locks);
                tokio::spawn(async move {
                    for _ in 0..50 {
                        let (one, other) = if i % 2 == 0 { ("a", "b") } else { ("b", "a") };
                        let _held = take(&locks, keys(&[one]), keys(&[other])).await;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(locks.table.lock().is_empty());
    }

    proptest::proptest! {
        /// Property test, for any locks acquired in any order: an exclusive holder excludes all others, every
        /// waiter gets its turn, and no lock is leaked.
        #[test]
        fn changes_exclude_each_other_and_all_come_to_their_turn(
            wishes in proptest::collection::vec(
                proptest::collection::vec((0..5_usize, proptest::bool::ANY), 1..4),
                1..12,
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let locks = Arc::new(Locks::default());
                // By key: number of holders, and whether one of them is exclusive.
                let held = Arc::new(Mutex::new([(0_u32, false); 5]));
                let tasks = wishes.into_iter().map(|wish| {
                    let (locks, held) = (Arc::clone(&locks), Arc::clone(&held));
                    tokio::spawn(async move {
                        let key = |n: &usize| Key::from(format!("{n}"));
                        let mut wanted = BTreeMap::new();
                        for (n, exclusive) in wish {
                            *wanted.entry(n).or_insert(false) |= exclusive;
                        }
                        let of = |exclusive| {
                            let some = wanted.iter().filter(move |(_, e)| **e == exclusive);
                            some.map(|(n, _)| key(n)).collect::<Vec<_>>()
                        };
                        let guard = take(&locks, of(true), of(false)).await;
                        for (n, exclusive) in &wanted {
                            let entry = &mut held.lock()[*n];
                            let is_alone = entry.0 == 0;
                            assert!(is_alone || !(*exclusive || entry.1), "{n} is not alone");
                            *entry = (entry.0 + 1, *exclusive);
                        }
                        tokio::task::yield_now().await;
                        for n in wanted.keys() {
                            let entry = &mut held.lock()[*n];
                            *entry = (entry.0 - 1, false);
                        }
                        drop(guard);
                    })
                });
                for task in tasks.collect::<Vec<_>>() {
                    task.await.expect("it has its turn");
                }
                assert!(locks.table.lock().is_empty());
            });
        }
    }
}
