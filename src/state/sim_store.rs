//! The storage engine over a simulated disk, as a store. The process that uses it dies where the disk loses
//! power, or before or after a given commit.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::engine::{Batch, CURRENT, Engine};
use super::history::History;
use super::seal::Sealer;
use super::sim::SimDisk;
use super::{Change, Entry, Error, Expected, StateKey, Store, Watch};

/// Simulated crash of the process at a commit, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// Crash before the commit: nothing of it is durable.
    Before(u64),
    /// Crash after the commit: it is durable, and its caller gets no answer.
    After(u64),
}

/// Store that answers no caller once the process has died.
pub(crate) struct SimStore {
    disk: SimDisk,
    writer: Mutex<Writer>,
    history: Arc<History>,
    died: Notify,
}

struct Writer {
    engine: Engine<SimDisk>,
    commits: u64,
    death: Option<Death>,
    is_dead: bool,
}

fn sealer() -> Sealer {
    Sealer::new(&StateKey::from([3; 32]))
}

/// Creates a disk with an empty state.
pub(crate) fn empty_disk() -> SimDisk {
    SimDisk::new(&sealer())
}

impl SimStore {
    /// Opens the state of the disk; `None` if power is lost meanwhile.
    pub fn start(disk: &SimDisk) -> Option<Arc<Self>> {
        let engine = match Engine::start(disk.clone(), sealer(), CURRENT) {
            Ok(engine) => engine,
            Err(_) if disk.has_lost_power() => return None,
            Err(fault) => panic!("the state cannot be opened: {fault:?}"),
        };
        let writer = Writer {
            engine,
            commits: 0,
            death: None,
            is_dead: false,
        };
        Some(Arc::new(Self {
            disk: disk.clone(),
            writer: Mutex::new(writer),
            history: Arc::default(),
            died: Notify::new(),
        }))
    }

    /// Schedules a crash at a commit, counted from the next one.
    pub fn die(&self, at: Death) {
        let mut writer = self.writer.lock();
        let (Death::Before(number) | Death::After(number)) = at;
        let number = writer.commits + number;
        writer.death = Some(match at {
            Death::Before(_) => Death::Before(number),
            Death::After(_) => Death::After(number),
        });
    }

    /// Runs `life` until it ends or the process dies, which returns `None`.
    pub async fn live<T>(&self, life: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.died.notified() => None,
            done = life => Some(done),
        }
    }

    /// Number of commits since the start.
    pub fn commits(&self) -> u64 {
        self.writer.lock().commits
    }

    fn write(&self, batch: Batch) -> Option<Result<(), Error>> {
        let mut writer = self.writer.lock();
        let number = writer.commits;
        if writer.is_dead || writer.death == Some(Death::Before(number)) {
            writer.is_dead = true;
            return None;
        }
        writer.commits += 1;
        // Every other commit is followed by an idle time, in which the store confirms it.
        let confirmed = match number % 2 {
            0 => Ok(()),
            _ => writer.engine.tidy(),
        };
        let group = [batch];
        let result = confirmed.and_then(|()| writer.engine.apply(&group).remove(0));
        if result.is_err() && self.disk.has_lost_power() {
            writer.is_dead = true;
            return None;
        }
        if result.is_ok() {
            let [batch] = group;
            self.history.add(batch.changes);
        }
        if writer.death == Some(Death::After(number)) {
            writer.is_dead = true;
            return None;
        }
        Some(result)
    }

    /// Never returns once the process has died.
    async fn or_die<T>(&self, result: Option<T>) -> T {
        match result {
            Some(result) => result,
            None => {
                self.died.notify_one();
                std::future::pending().await
            }
        }
    }
}

impl Store for SimStore {
    fn commit(&self, changes: Vec<Change>, expected: Expected) -> BoxFuture<'_, Result<(), Error>> {
        let batch = Batch { changes, expected };
        Box::pin(async move { self.or_die(self.write(batch)).await })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>> {
        Box::pin(async move {
            let found = self.writer.lock().engine.scan(prefix);
            let is_dead = found.is_err() && self.disk.has_lost_power();
            self.or_die((!is_dead).then_some(found)).await
        })
    }

    fn watch(&self, after: Option<u64>) -> Result<Watch, Error> {
        self.history.watch(after)
    }

    fn revision(&self) -> u64 {
        self.writer.lock().engine.revision()
    }
}
