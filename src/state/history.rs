//! Bounded history of committed changes, for watchers. Keeps only the last change of each record: an earlier one
//! may contain secrets that the record no longer has.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Change, Error};

/// Number of changes kept.
const LENGTH: usize = 4096;

/// Ring of changes in commit order.
#[derive(Debug)]
pub(super) struct History {
    ring: Mutex<Ring>,
    /// Number of changes ever added.
    count: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    changes: VecDeque<Slot>,
    /// Number of changes dropped from the ring.
    gone: u64,
    /// Number of the last change of each record.
    last: HashMap<String, u64>,
}

/// Slot of one change in the ring.
#[derive(Debug)]
struct Slot {
    revision: u64,
    /// `None` once a later change of the same record has replaced it.
    change: Option<Change>,
}

impl Ring {
    fn end(&self) -> u64 {
        self.gone + self.changes.len() as u64
    }

    /// Returns the slot of this number; `None` if it was dropped or is not added yet.
    fn at(&mut self, number: u64) -> Option<&mut Slot> {
        let index = number.checked_sub(self.gone)?;
        self.changes.get_mut(usize::try_from(index).ok()?)
    }

    fn push(&mut self, change: Change) {
        if self.changes.len() == LENGTH
            && let Some(first) = self.changes.pop_front()
        {
            self.gone += 1;
            if let Some(change) = first.change {
                self.last.remove(change.key());
            }
        }
        let number = self.end();
        if let Some(before) = self.last.insert(change.key().to_owned(), number)
            && let Some(slot) = self.at(before)
        {
            slot.change = None;
        }
        self.changes.push_back(Slot {
            revision: change.revision(),
            change: Some(change),
        });
    }
}

impl Default for History {
    fn default() -> Self {
        Self {
            ring: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl History {
    /// Adds the changes of one commit.
    pub fn add(&self, changes: impl IntoIterator<Item = Change>) {
        let mut ring = self.ring.lock();
        for change in changes {
            ring.push(change);
        }
        self.count.send_replace(ring.end());
    }

    /// Watches the changes after this revision, or from now on.
    ///
    /// # Errors
    /// [`Error::TooOld`].
    pub fn watch(self: &Arc<Self>, after: Option<u64>) -> Result<Watch, Error> {
        let ring = self.ring.lock();
        let next = match after {
            None => ring.end(),
            Some(revision) => {
                let mut revisions = ring.changes.iter().map(|slot| slot.revision);
                let found = revisions.position(|known| known == revision);
                ring.gone + found.ok_or(Error::TooOld(revision))? as u64 + 1
            }
        };
        drop(ring);
        Ok(Watch {
            count: self.count.subscribe(),
            history: Arc::clone(self),
            next,
            last: after.unwrap_or_default(),
        })
    }
}

/// Stream of the changes of a store in commit order. Of several changes of one record perhaps only the last is
/// seen.
#[derive(Debug)]
pub struct Watch {
    history: Arc<History>,
    count: watch::Receiver<u64>,
    next: u64,
    last: u64,
}

impl Watch {
    /// Waits for the next change.
    ///
    /// # Errors
    /// [`Error::TooOld`] for a watcher that fell behind.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            // Before reading the ring, so that a concurrent change still wakes the wait below.
            self.count.mark_unchanged();
            {
                let mut ring = self.history.ring.lock();
                if self.next < ring.gone {
                    return Err(Error::TooOld(self.last));
                }
                while let Some(slot) = ring.at(self.next) {
                    self.next += 1;
                    self.last = slot.revision;
                    if let Some(change) = &slot.change {
                        return Ok(change.clone());
                    }
                }
            }
            // The error case cannot happen: the history held here owns the sender.
            self.count.changed().await.map_err(|_| Error::Closed)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each revision is of another record.
    fn removal(revision: u64) -> Change {
        removal_of(&format!("nullVolumes/{revision}"), revision)
    }

    fn removal_of(key: &str, revision: u64) -> Change {
        Change::Remove {
            key: key.to_owned(),
            revision,
        }
    }

    #[tokio::test]
    async fn of_a_record_the_last_change_alone_is_kept() {
        let history = Arc::new(History::default());
        history.add([removal(1)]);
        let mut watch = history.watch(Some(1)).unwrap();
        history.add([removal_of("a", 2), removal_of("b", 3), removal_of("a", 4)]);
        assert_eq!(watch.next().await, Ok(removal_of("b", 3)));
        assert_eq!(watch.next().await, Ok(removal_of("a", 4)));
        let mut after_what_has_gone = history.watch(Some(2)).unwrap();
        assert_eq!(after_what_has_gone.next().await, Ok(removal_of("b", 3)));
        history.add((5..).take(LENGTH).map(removal));
        assert_eq!(history.ring.lock().last.len(), LENGTH);
    }

    #[tokio::test]
    async fn a_watcher_gets_each_change_once_in_the_order_of_the_commits() {
        let history = Arc::new(History::default());
        history.add([removal(1), removal(3), removal(2)]);
        let mut from_now = history.watch(None).unwrap();
        let mut from_3 = history.watch(Some(3)).unwrap();
        history.add([removal(4)]);
        assert_eq!(from_now.next().await, Ok(removal(4)));
        assert_eq!(from_3.next().await, Ok(removal(2)));
        assert_eq!(from_3.next().await, Ok(removal(4)));
        let waiting = tokio::spawn(async move { from_3.next().await });
        tokio::task::yield_now().await;
        history.add([removal(5)]);
        assert_eq!(waiting.await.unwrap(), Ok(removal(5)));
    }

    #[tokio::test]
    async fn a_watcher_that_fell_behind_is_told() {
        let history = Arc::new(History::default());
        history.add([removal(1)]);
        assert_eq!(history.watch(Some(7)).unwrap_err(), Error::TooOld(7));
        let mut slow = history.watch(Some(1)).unwrap();
        history.add((2..).take(LENGTH + 1).map(removal));
        assert_eq!(slow.next().await, Err(Error::TooOld(1)));
        assert_eq!(history.watch(Some(1)).unwrap_err(), Error::TooOld(1));
    }
}
