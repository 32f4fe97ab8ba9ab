//! Store in memory, lost with the process: for tests, and for a server without a state directory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::history::History;
use super::{Change, Entry, Error, Expected, Store, Watch};

/// Records in memory.
#[derive(Debug, Default)]
pub struct Memory {
    entries: Mutex<BTreeMap<String, Entry>>,
    revision: AtomicU64,
    history: Arc<History>,
}

impl Memory {
    fn apply(&self, changes: Vec<Change>, expected: &Expected) -> Result<(), Error> {
        let mut entries = self.entries.lock();
        for (key, expected) in expected {
            let found = entries.get(key).map(|entry| entry.revision);
            if found != *expected {
                return Err(Error::Conflict {
                    key: key.clone(),
                    expected: *expected,
                    found,
                });
            }
        }
        for change in &changes {
            self.revision
                .fetch_max(change.revision(), Ordering::Relaxed);
            match change {
                Change::Put(entry) => entries.insert(entry.key.clone(), entry.clone()),
                Change::Remove { key, .. } => entries.remove(key),
            };
        }
        // Under the lock, so that watchers see the changes in commit order.
        self.history.add(changes);
        Ok(())
    }
}

impl Store for Memory {
    fn commit(&self, changes: Vec<Change>, expected: Expected) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.apply(changes, &expected) })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>> {
        Box::pin(async move {
            let entries = self.entries.lock();
            let from = entries.range::<str, _>((
                std::ops::Bound::Included(prefix),
                std::ops::Bound::Unbounded,
            ));
            let found = from.take_while(|(key, _)| key.starts_with(prefix));
            Ok(found.map(|(_, entry)| entry.clone()).collect())
        })
    }

    fn watch(&self, after: Option<u64>) -> Result<Watch, Error> {
        self.history.watch(after)
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }
}
