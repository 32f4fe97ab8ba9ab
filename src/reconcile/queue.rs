//! Queue of the keys of records to reconcile.
//!
//! ```text
//!          put                 next              done(Ok)
//! absent ──────► due at once ───────► running ────────────► absent, or due if put meanwhile
//!                  ▲                     │ done(Err)
//!                  └──── due later ◄─────┘ backoff with jitter
//! ```
//!
//! Keys are deduplicated, and at most one attempt of a key runs at a time. Watchers only put keys.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::resource::Key;

/// Backoff before the first retry.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Maximum backoff, before jitter.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The reconcile queue.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    /// Notified when the due keys change.
    changed: Notify,
    jitter: RandomState,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Key, Slot>,
    /// Waiting keys, ordered by due time.
    due: BTreeSet<(Instant, Key)>,
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    /// Waits for an attempt that is due at this time.
    Waiting { at: Instant, failures: u32 },
    /// An attempt is running; `again`: the key was put meanwhile.
    Running { failures: u32, again: bool },
}

impl State {
    fn wait(&mut self, key: &Key, at: Instant, failures: u32) {
        let slot = Slot::Waiting { at, failures };
        if let Some(Slot::Waiting { at, .. }) = self.slots.insert(key.clone(), slot) {
            self.due.remove(&(at, key.clone()));
        }
        self.due.insert((at, key.clone()));
    }
}

impl Queue {
    /// Creates an empty queue.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Requests an attempt because of an event: due at once, or after the attempt that is running.
    pub fn put(&self, key: &Key) {
        let mut state = self.state.lock();
        match state.slots.get_mut(key) {
            Some(Slot::Running { again, .. }) => *again = true,
            Some(Slot::Waiting { failures, .. }) => {
                let failures = *failures;
                state.wait(key, Instant::now(), failures);
            }
            None => state.wait(key, Instant::now(), 0),
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Requests an attempt of a record known to disagree: due at once, unless the key is waiting or running
    /// already.
    pub fn offer(&self, key: &Key) {
        let mut state = self.state.lock();
        if !state.slots.contains_key(key) {
            state.wait(key, Instant::now(), 0);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Number of keys, running ones included.
    pub fn len(&self) -> usize {
        self.state.lock().slots.len()
    }

    /// Whether the queue has no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for a key whose attempt is due. [`done`](Self::done) must follow.
    pub(super) async fn next(&self) -> Key {
        loop {
            let changed = self.changed.notified();
            let first = {
                let mut state = self.state.lock();
                match state.due.first() {
                    Some((at, _)) if *at <= Instant::now() => {
                        if let Some((_, key)) = state.due.pop_first() {
                            begin(&mut state, &key);
                            return key;
                        }
                        None
                    }
                    first => first.map(|(at, _)| *at),
                }
            };
            match first {
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Starts an attempt of a key out of turn, without [`next`](Self::next); `false` if one is running already.
    pub(super) fn begin(&self, key: &Key) -> bool {
        let mut state = self.state.lock();
        match state.slots.get(key).copied() {
            Some(Slot::Running { .. }) => return false,
            Some(Slot::Waiting { at, .. }) => {
                state.due.remove(&(at, key.clone()));
            }
            None => {}
        }
        begin(&mut state, key);
        true
    }

    /// Ends an attempt. After a failure, returns the time until the retry.
    pub(super) fn done(&self, key: &Key, succeeded: bool) -> Option<Duration> {
        let mut state = self.state.lock();
        let (failures, again) = match state.slots.remove(key) {
            Some(Slot::Running { failures, again }) => (failures, again),
            _ => (0, false),
        };
        let after = match (succeeded, again) {
            (true, false) => return None,
            (true, true) => Duration::ZERO,
            (false, true) => BACKOFF_MIN,
            (false, false) => self.backoff(key, failures),
        };
        let failures = match succeeded {
            true => 0,
            false => failures.saturating_add(1),
        };
        let now = Instant::now();
        state.wait(key, now.checked_add(after).unwrap_or(now), failures);
        drop(state);
        self.changed.notify_one();
        (!succeeded).then_some(after)
    }

    /// Exponential backoff with up to 25 % jitter, so that records that failed together are not retried
    /// together.
    fn backoff(&self, key: &Key, failures: u32) -> Duration {
        let doubled = BACKOFF_MIN.saturating_mul(1 << failures.min(10));
        let backoff = doubled.min(BACKOFF_MAX);
        let random = self.jitter.hash_one((key, failures));
        let quarters = u32::try_from(random % 256).unwrap_or_default();
        backoff.saturating_add(backoff.saturating_mul(quarters) / 1024)
    }
}

fn begin(state: &mut State, key: &Key) {
    let failures = match state.slots.get(key) {
        Some(Slot::Waiting { failures, .. }) => *failures,
        _ => 0,
    };
    let again = false;
    let running = Slot::Running { failures, again };
    state.slots.insert(key.clone(), running);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn key(name: &str) -> Key {
        Key::from(name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_there_once_and_is_due_again_if_it_is_put_while_it_runs() {
        let queue = Queue::new();
        for _ in 0..3 {
            queue.put(&key("a"));
        }
        assert_eq!((queue.next().await, queue.len()), (key("a"), 1));
        assert!(!queue.begin(&key("a")), "it runs");
        queue.put(&key("a"));
        queue.offer(&key("a"));
        assert_eq!(queue.done(&key("a"), true), None);
        assert_eq!(queue.next().await, key("a"));
        assert_eq!(queue.done(&key("a"), true), None);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_retried_later_and_later_but_at_once_when_it_is_put() {
        let queue = Queue::new();
        queue.put(&key("a"));
        let mut last = Duration::ZERO;
        for _ in 0..12 {
            let before = Instant::now();
            assert_eq!(queue.next().await, key("a"));
            assert!(before.elapsed() >= last);
            last = queue.done(&key("a"), false).expect("it is retried");
            assert!(last <= BACKOFF_MAX.mul_f32(1.25), "{last:?}");
        }
        assert!(last >= BACKOFF_MAX);
        queue.offer(&key("a"));
        assert!(
            queue
                .state
                .lock()
                .due
                .first()
                .is_some_and(|(at, _)| *at > Instant::now())
        );
        let before = Instant::now();
        queue.put(&key("a"));
        queue.next().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u8),
        Offer(u8),
        Next,
        Done(u8, bool),
        Wait,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u8).prop_map(Step::Put),
            (0..4u8).prop_map(Step::Offer),
            Just(Step::Next),
            (0..4u8, any::<bool>()).prop_map(|(key, succeeded)| Step::Done(key, succeeded)),
            Just(Step::Wait),
        ]
    }

    proptest! {
        /// Property test: at most one attempt of a key at a time, no put key is lost, and the two tables stay
        /// consistent.
        #[test]
        fn no_key_is_lost_and_none_runs_twice(steps in prop::collection::vec(step(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let queue = Queue::new();
                let name = |n: u8| key(&n.to_string());
                // Keys that are owed an attempt, and keys with a running one.
                let (mut owed, mut running) = (HashSet::new(), HashSet::new());
                for step in steps {
                    match step {
                        Step::Put(n) => {
                            queue.put(&name(n));
                            owed.insert(name(n));
                        }
                        Step::Offer(n) => {
                            queue.offer(&name(n));
                            if !running.contains(&name(n)) {
                                owed.insert(name(n));
                            }
                        }
                        Step::Next => {
                            let next = tokio::time::timeout(Duration::from_millis(1), queue.next());
                            if let Ok(next) = next.await {
                                assert!(owed.remove(&next), "{next} is owed none");
                                assert!(running.insert(next), "it runs twice");
                            }
                        }
                        Step::Done(n, succeeded) => {
                            if running.remove(&name(n)) {
                                queue.done(&name(n), succeeded);
                                if !succeeded {
                                    owed.insert(name(n));
                                }
                            }
                        }
                        Step::Wait => tokio::time::advance(BACKOFF_MAX * 2).await,
                    }
                    let state = queue.state.lock();
                    let waiting = |slot: &&Slot| matches!(slot, Slot::Waiting { .. });
                    assert_eq!(state.slots.values().filter(waiting).count(), state.due.len());
                    drop(state);
                    assert_eq!(queue.len(), owed.union(&running).count());
                }
                for key in &running {
                    queue.done(key, true);
                }
                while !owed.is_empty() {
                    let next = queue.next().await;
                    queue.done(&next, true);
                    owed.remove(&next);
                }
            });
        }
    }
}
