//! Locks by name, for tasks of the app thread: what takes several steps is not
//! interleaved with another change of the same thing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

type Locks = HashMap<(&'static str, String), Arc<Mutex<()>>>;

thread_local! {
    static LOCKS: RefCell<Locks> = RefCell::default();
}

/// Waits for the lock of `name` among things of its `kind`, in the order of asking.
pub(crate) async fn lock(kind: &'static str, name: &str) -> OwnedMutexGuard<()> {
    let lock = LOCKS.with_borrow_mut(|locks| {
        // What nobody holds or awaits any more goes.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry((kind, name.to_owned())).or_default().clone()
    });
    lock.lock_owned().await
}
