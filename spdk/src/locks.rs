//! Named locks for tasks of the app thread: a change of several steps is not interleaved with another change of the
//! same object.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

type Locks = HashMap<(&'static str, String), Arc<Mutex<()>>>;

thread_local! {
    static LOCKS: RefCell<Locks> = RefCell::default();
}

/// Waits for the lock of `name` among the objects of `kind`. Fair: first come, first served.
pub(crate) async fn lock(kind: &'static str, name: &str) -> OwnedMutexGuard<()> {
    let lock = LOCKS.with_borrow_mut(|locks| {
        // Drops locks that nobody holds or waits for.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry((kind, name.to_owned())).or_default().clone()
    });
    lock.lock_owned().await
}
