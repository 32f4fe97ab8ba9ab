//! The last changes that a store has committed, for those who watch it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Change, Error};

/// Changes that are remembered.
const LENGTH: usize = 4096;

/// The changes in the order of their commits.
#[derive(Debug)]
pub(super) struct History {
    ring: Mutex<Ring>,
    /// How many changes there have been.
    count: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    changes: VecDeque<Change>,
    /// How many changes have left it.
    gone: u64,
}

impl Ring {
    fn end(&self) -> u64 {
        self.gone + self.changes.len() as u64
    }

    /// The change of this number, `None` when it has left.
    fn at(&self, number: u64) -> Option<&Change> {
        let index = number.checked_sub(self.gone)?;
        self.changes.get(usize::try_from(index).ok()?)
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
            if ring.changes.len() == LENGTH {
                ring.changes.pop_front();
                ring.gone += 1;
            }
            ring.changes.push_back(change);
        }
        self.count.send_replace(ring.end());
    }

    /// Those after the change of this revision, or from now on.
    ///
    /// # Errors
    /// [`Error::TooOld`].
    pub fn watch(self: &Arc<Self>, after: Option<u64>) -> Result<Watch, Error> {
        let ring = self.ring.lock();
        let next = match after {
            None => ring.end(),
            Some(revision) => {
                let mut revisions = ring.changes.iter().map(Change::revision);
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

/// The changes of a store, one after the other.
#[derive(Debug)]
pub struct Watch {
    history: Arc<History>,
    count: watch::Receiver<u64>,
    next: u64,
    last: u64,
}

impl Watch {
    /// The next change, once there is one.
    ///
    /// # Errors
    /// [`Error::TooOld`] for a watcher that fell behind.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            // Before the look at the ring, so that a change after that is seen.
            self.count.mark_unchanged();
            {
                let ring = self.history.ring.lock();
                if self.next < ring.gone {
                    return Err(Error::TooOld(self.last));
                }
                if let Some(change) = ring.at(self.next) {
                    self.next += 1;
                    self.last = change.revision();
                    return Ok(change.clone());
                }
            }
            // The sender lives as long as the history that is held here.
            self.count.changed().await.map_err(|_| Error::Closed)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(revision: u64) -> Change {
        Change::Remove {
            key: "nullVolumes/a".to_owned(),
            revision,
        }
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
