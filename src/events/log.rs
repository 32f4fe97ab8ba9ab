//! The event log: the latest events, ordered by revision, for any number of watchers.
//!
//! ```text
//! begin ─► revision ─► commit of the store ─► Ticket::committed ─► published once all earlier ones have ended
//!                            └── fails ─► the ticket is dropped: no event, and no later change waits for it
//! ```
//!
//! Commits run concurrently and end in any order: the events of a change are published once all changes with lower
//! revisions have ended. Watchers exert no backpressure: one that falls behind the log gets an error.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Event;

/// Events that are kept.
const LENGTH: usize = 4096;

/// The event log.
#[derive(Debug)]
pub struct Log {
    inner: Mutex<Inner>,
    /// Number of events published.
    count: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    /// The last revision that was assigned.
    assigned: u64,
    /// Revision of the last published change.
    published: u64,
    /// All published changes after this revision are in the ring.
    floor: u64,
    /// Changes in flight, and ended ones that wait for them.
    open: BTreeMap<u64, Open>,
    ring: VecDeque<Arc<Event>>,
    /// Number of events dropped from the ring.
    gone: u64,
    is_closed: bool,
}

/// A change with a revision.
#[derive(Debug, Default)]
struct Open {
    has_ended: bool,
    is_committed: bool,
    /// Events of the change, and those that happened after it.
    events: Vec<Event>,
}

/// Why a watcher cannot continue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// Changes after this revision are no longer kept.
    #[error(
        "changes after revision {revision} are no longer known, only those after {oldest}: list again, and watch from there"
    )]
    TooOld {
        /// The requested revision.
        revision: u64,
        /// The oldest possible revision.
        oldest: u64,
    },
    /// The revision has not been assigned yet.
    #[error(
        "revision {revision} is not given yet, the last one is {last}: list again, and watch from there"
    )]
    Future {
        /// The requested revision.
        revision: u64,
        /// The latest revision.
        last: u64,
    },
    /// The watcher fell behind.
    #[error(
        "the client read too slowly: events after revision {after} are no longer known; list again, and watch from there"
    )]
    Slow {
        /// Revision of the last event it received.
        after: u64,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Closed,
}

impl Inner {
    fn push(&mut self, mut event: Event) {
        if !event.is_change() {
            event.revision = i64::try_from(self.published).unwrap_or(i64::MAX);
        }
        if self.ring.len() == LENGTH
            && let Some(first) = self.ring.pop_front()
        {
            self.gone = self.gone.saturating_add(1);
            self.floor = self.floor.max(revision_of(&first));
        }
        self.ring.push_back(Arc::new(event));
    }

    /// Publishes the events that no change in flight precedes.
    fn settle(&mut self) {
        while let Some(first) = self.open.first_entry()
            && first.get().has_ended
        {
            let (revision, open) = first.remove_entry();
            if open.is_committed {
                self.published = revision;
            }
            for event in open.events {
                self.push(event);
            }
        }
    }

    fn end(&self) -> u64 {
        self.gone.saturating_add(self.ring.len() as u64)
    }
}

fn revision_of(event: &Event) -> u64 {
    u64::try_from(event.revision).unwrap_or_default()
}

impl Log {
    /// An empty log; `revision` is that of the last change before it.
    pub fn new(revision: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                assigned: revision,
                published: revision,
                floor: revision,
                open: BTreeMap::new(),
                ring: VecDeque::new(),
                gone: 0,
                is_closed: false,
            }),
            count: watch::Sender::new(0),
        })
    }

    /// Revision of the last published change: all changes before it are published too.
    pub fn revision(&self) -> u64 {
        self.inner.lock().published
    }

    /// Assigns a revision to a change.
    pub fn begin(self: &Arc<Self>) -> Ticket {
        let mut inner = self.inner.lock();
        inner.assigned = inner.assigned.saturating_add(1);
        let revision = inner.assigned;
        inner.open.insert(revision, Open::default());
        Ticket {
            log: Arc::clone(self),
            revision,
            is_committed: false,
            events: Vec::new(),
        }
    }

    /// Publishes an event that is not a change of an object, in order with the changes so far.
    pub fn tell(&self, event: Event) {
        let mut inner = self.inner.lock();
        match inner.open.last_entry() {
            // Bounded, in case the store hangs.
            Some(mut last) if last.get().events.len() < LENGTH => {
                last.get_mut().events.push(event);
            }
            _ => inner.push(event),
        }
        self.count.send_replace(inner.end());
    }

    /// Ends all watches.
    pub fn close(&self) {
        self.inner.lock().is_closed = true;
        self.count.send_modify(|_| ());
    }

    /// Watches the events after this revision, or from now on.
    ///
    /// # Errors
    /// [`Gap::TooOld`], [`Gap::Future`].
    pub fn watch(self: &Arc<Self>, after: Option<u64>) -> Result<Watch, Gap> {
        let inner = self.inner.lock();
        let next = match after {
            None => inner.end(),
            Some(revision) if revision < inner.floor => {
                return Err(Gap::TooOld {
                    revision,
                    oldest: inner.floor,
                });
            }
            Some(revision) if revision > inner.published => {
                return Err(Gap::Future {
                    revision,
                    last: inner.published,
                });
            }
            Some(revision) => {
                let is_known = |event: &Arc<Event>| {
                    let of = revision_of(event);
                    of < revision || (of == revision && event.is_change())
                };
                inner
                    .gone
                    .saturating_add(inner.ring.partition_point(is_known) as u64)
            }
        };
        let last = after.unwrap_or(inner.published);
        drop(inner);
        Ok(Watch {
            count: self.count.subscribe(),
            log: Arc::clone(self),
            next,
            last,
        })
    }

    fn ended(&self, revision: u64, is_committed: bool, events: Vec<Event>) {
        let mut inner = self.inner.lock();
        if let Some(open) = inner.open.get_mut(&revision) {
            open.has_ended = true;
            open.is_committed = is_committed;
            // Events that happened in the meantime follow those of the change.
            open.events.splice(0..0, events);
        }
        inner.settle();
        self.count.send_replace(inner.end());
    }
}

/// A change in flight. Dropping it before it is committed means that the change failed.
#[derive(Debug)]
pub struct Ticket {
    log: Arc<Log>,
    revision: u64,
    is_committed: bool,
    events: Vec<Event>,
}

impl Ticket {
    /// The revision, unique to this change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The change is durable: publishes its events.
    pub fn committed(mut self, events: impl IntoIterator<Item = Event>) {
        let revision = i64::try_from(self.revision).unwrap_or(i64::MAX);
        self.events
            .extend(events.into_iter().map(|event| Event { revision, ..event }));
        self.is_committed = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let events = std::mem::take(&mut self.events);
        self.log.ended(self.revision, self.is_committed, events);
    }
}

/// A stream of events.
#[derive(Debug)]
pub struct Watch {
    log: Arc<Log>,
    count: watch::Receiver<u64>,
    next: u64,
    last: u64,
}

impl Watch {
    /// Waits for the next event.
    ///
    /// # Errors
    /// [`Gap::Slow`], [`Gap::Closed`].
    pub async fn next(&mut self) -> Result<Arc<Event>, Gap> {
        loop {
            // Marked before reading the ring, so that no later event is missed.
            self.count.mark_unchanged();
            {
                let inner = self.log.inner.lock();
                let Some(at) = self.next.checked_sub(inner.gone) else {
                    return Err(Gap::Slow { after: self.last });
                };
                let event = usize::try_from(at).ok().and_then(|at| inner.ring.get(at));
                if let Some(event) = event {
                    self.next = self.next.saturating_add(1);
                    self.last = revision_of(event);
                    return Ok(Arc::clone(event));
                }
                if inner.is_closed {
                    return Err(Gap::Closed);
                }
            }
            // Cannot fail: the sender lives as long as `self.log`.
            self.count.changed().await.map_err(|_| Gap::Closed)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventType;

    fn created(name: &str) -> Event {
        Event::now(EventType::Created, name)
    }

    fn published(log: &Log) -> Vec<(i64, String)> {
        let inner = log.inner.lock();
        let all = inner.ring.iter();
        all.map(|event| (event.revision, event.object.clone()))
            .collect()
    }

    #[test]
    fn changes_that_end_in_another_order_are_told_in_that_of_their_revisions() {
        let log = Log::new(10);
        let (first, second, third) = (log.begin(), log.begin(), log.begin());
        second.committed([created("b")]);
        assert!(
            published(&log).is_empty() && log.revision() == 10,
            "11 may still come"
        );
        // An event after a change in flight.
        log.tell(Event::now(EventType::PathUp, "path"));
        drop(third);
        first.committed([created("a")]);
        let all = [(11, "a".into()), (12, "b".into()), (12, "path".into())];
        assert_eq!(published(&log), all);
        assert_eq!(log.revision(), 12, "13 was not committed");
        log.begin().committed([created("c")]);
        assert_eq!(published(&log).last(), Some(&(14, "c".into())));
    }

    #[test]
    fn a_change_that_fails_or_panics_holds_up_nobody() {
        let log = Log::new(0);
        let failed = log.begin();
        log.begin().committed([created("a")]);
        let thread = std::thread::spawn(move || {
            let _held = failed;
            panic!("as a change may")
        });
        assert!(thread.join().is_err());
        assert_eq!(published(&log), [(2, "a".into())]);
    }

    #[tokio::test]
    async fn a_watch_goes_on_after_a_revision_and_may_be_told_again_what_is_no_change() {
        let log = Log::new(5);
        log.begin().committed([created("a")]);
        log.tell(Event::now(EventType::PathDown, "path"));
        log.begin().committed([created("b")]);
        let after = async |revision| {
            let mut watch = log.watch(Some(revision)).unwrap();
            watch.next().await.unwrap().object.clone()
        };
        assert_eq!(after(5).await, "a");
        assert_eq!(after(6).await, "path");
        let mut waiting = log.watch(Some(7)).unwrap();
        let mut from_now = log.watch(None).unwrap();
        log.begin().committed([created("c")]);
        assert_eq!(waiting.next().await.unwrap().object, "c");
        assert_eq!(from_now.next().await.unwrap().object, "c");
    }

    #[tokio::test]
    async fn what_cannot_be_told_is_refused_and_a_slow_watcher_is_cut_off() {
        let log = Log::new(5);
        let too_old = Gap::TooOld {
            revision: 4,
            oldest: 5,
        };
        assert_eq!(log.watch(Some(4)).unwrap_err(), too_old);
        let future = Gap::Future {
            revision: 6,
            last: 5,
        };
        assert_eq!(log.watch(Some(6)).unwrap_err(), future);
        let mut slow = log.watch(Some(5)).unwrap();
        for _ in 0..=LENGTH {
            log.begin().committed([created("a")]);
        }
        assert_eq!(slow.next().await.unwrap_err(), Gap::Slow { after: 5 });
        assert!(log.watch(Some(5)).is_err(), "6 is gone");
        assert!(log.watch(Some(6)).is_ok());
        assert_eq!(log.inner.lock().ring.len(), LENGTH);

        let mut waiting = log.watch(None).unwrap();
        let task = tokio::spawn(async move { waiting.next().await });
        tokio::task::yield_now().await;
        log.close();
        assert_eq!(task.await.unwrap().unwrap_err(), Gap::Closed);
    }
}
