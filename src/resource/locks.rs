//! One lock for each name, for as long as somebody wants it.
//!
//! A change locks what it touches exclusively and what it refers to shared, all at once and in the
//! order of the keys, so that two changes cannot wait for each other in a circle. Changes of
//! different names share nothing here but a short look into the table.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::Key;
use crate::telemetry::traces;

type Lock = Arc<RwLock<()>>;

/// The table of the locks that are held or waited for.
#[derive(Debug, Default)]
pub struct Locks {
    table: Mutex<HashMap<Key, Lock>>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "the guards are there to be dropped")]
enum Guard {
    Shared(OwnedRwLockReadGuard<()>),
    Exclusive(OwnedRwLockWriteGuard<()>),
}

/// Locks that are held; dropping it frees them.
#[derive(Debug)]
pub struct Held {
    locks: Arc<Locks>,
    entries: Vec<(Key, Lock, Option<Guard>)>,
}

impl Locks {
    /// Waits for all of them. A key in both lists is taken exclusively.
    pub async fn acquire(
        self: &Arc<Self>,
        exclusive: impl IntoIterator<Item = Key>,
        shared: impl IntoIterator<Item = Key>,
    ) -> Held {
        let mut wanted: BTreeMap<Key, bool> = shared.into_iter().map(|key| (key, false)).collect();
        wanted.extend(exclusive.into_iter().map(|key| (key, true)));
        let waiting = async {
            let mut held = Held {
                locks: Arc::clone(self),
                entries: Vec::with_capacity(wanted.len()),
            };
            for (key, exclusive) in wanted {
                let lock = Arc::clone(self.table.lock().entry(key.clone()).or_default());
                held.entries.push((key, Arc::clone(&lock), None));
                let guard = if exclusive {
                    Guard::Exclusive(lock.write_owned().await)
                } else {
                    Guard::Shared(lock.read_owned().await)
                };
                if let Some(entry) = held.entries.last_mut() {
                    entry.2 = Some(guard);
                }
            }
            held
        };
        traces::child("lock wait", waiting).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.locks.table.lock();
        for (key, lock, guard) in self.entries.drain(..) {
            drop(guard);
            // The table's reference and ours: nobody else holds it or waits for it.
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

    fn keys(names: &[&str]) -> Vec<Key> {
        names.iter().map(|name| Key::from(*name)).collect()
    }

    fn waits(future: Pin<&mut impl Future>) -> bool {
        future
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    }

    #[tokio::test]
    async fn changes_of_different_names_run_side_by_side() {
        let locks = Arc::new(Locks::default());
        let a = locks.acquire(keys(&["a"]), keys(&["parent"])).await;
        let b = locks.acquire(keys(&["b"]), keys(&["parent"])).await;
        drop((a, b));
        assert!(locks.table.lock().is_empty());
    }

    #[tokio::test]
    async fn a_name_is_held_by_one_change_at_a_time() {
        let locks = Arc::new(Locks::default());
        let first = locks.acquire(keys(&["a"]), []).await;
        let mut second = pin!(locks.acquire(keys(&["a"]), []));
        assert!(waits(second.as_mut()));
        drop(first);
        drop(second.await);
        assert!(locks.table.lock().is_empty());
    }

    #[tokio::test]
    async fn what_is_referred_to_waits_for_its_users_only_when_it_changes() {
        let locks = Arc::new(Locks::default());
        let user = locks.acquire(keys(&["a"]), keys(&["volume"])).await;
        let mut change = pin!(locks.acquire(keys(&["volume"]), []));
        assert!(waits(change.as_mut()));
        drop(user);
        drop(change.await);
    }

    #[tokio::test]
    async fn a_change_that_is_given_up_leaves_no_lock() {
        let locks = Arc::new(Locks::default());
        let held = locks.acquire(keys(&["b"]), []).await;
        {
            let mut waiting = pin!(locks.acquire(keys(&["a", "b"]), []));
            assert!(waits(waiting.as_mut()));
        }
        drop(held);
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
                        let _held = locks.acquire(keys(&[one]), keys(&[other])).await;
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
        /// Whatever is asked for in whatever order: nobody who changes a key is beside another who has
        /// it, all come to their turn, and no lock is left.
        #[test]
        fn changes_exclude_each_other_and_all_come_to_their_turn(
            wishes in proptest::collection::vec(
                proptest::collection::vec((0..5_usize, proptest::bool::ANY), 1..4),
                1..12,
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let locks = Arc::new(Locks::default());
                // Of each key: how many have it, and whether one changes it.
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
                        let guard = locks.acquire(of(true), of(false)).await;
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
