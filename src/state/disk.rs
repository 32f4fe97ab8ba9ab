//! Store of a server with a state directory: a writer thread owns the file, and commits that arrive while it
//! waits for the disk are grouped into the next transaction.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::counters::Counters;
use super::engine::{Batch, Engine, Opener};
use super::file::StateFile;
use super::history::History;
use super::seal::Sealer;
use super::{Change, Entry, Error, Expected, StateKey, Stats, Store, Watch};

/// Maximum number of commits in a group.
const GROUP_MAX: usize = 1024;

/// Idle time after which the last commit is confirmed.
const QUIET: Duration = Duration::from_millis(20);

/// Retry period after a failure to roll back a commit in doubt or to confirm the last commit.
const RETRY: Duration = Duration::from_secs(1);

/// Records in the file `state.redb` of a state directory.
pub struct Disk {
    requests: Sender<Request>,
    revision: Arc<AtomicU64>,
    history: Arc<History>,
    busy: Arc<Busy>,
    counters: Arc<Counters>,
}

/// Since when the writer thread has been in a file operation.
struct Busy {
    epoch: Instant,
    /// Milliseconds since `epoch`; [`IDLE`] between operations.
    since: AtomicU64,
}

const IDLE: u64 = u64::MAX;

impl Busy {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(IDLE)
    }

    fn begin(&self) {
        self.since.store(self.now(), Ordering::Release);
    }

    fn end(&self) {
        self.since.store(IDLE, Ordering::Release);
    }

    fn lasts(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Acquire);
        (since != IDLE).then(|| Duration::from_millis(self.now().saturating_sub(since)))
    }
}

enum Request {
    Commit(Batch, oneshot::Sender<Result<(), Error>>),
    Scan(String, oneshot::Sender<Result<Vec<Entry>, Error>>),
    Close(oneshot::Sender<()>),
}

impl Disk {
    /// Whether a state directory has a state. If it has, its key must not be regenerated.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn exists(dir: &Path) -> Result<bool, String> {
        StateFile::in_dir(dir).exists()
    }

    /// Opens the state of a directory whose lock the caller holds; creates it at the first start. Verifies all
    /// of it; a state that is damaged, foreign, newer or sealed with another key is left unchanged.
    ///
    /// # Errors
    /// One line for the operator: what is wrong, and the remedy.
    pub fn open(dir: &Path, key: &StateKey) -> Result<Self, String> {
        let file = StateFile::in_dir(dir);
        let sealer = Sealer::new(key);
        if file.exists()? {
            file.check(&sealer, drop)?;
        } else {
            file.create(&sealer)?;
        }
        let counters = file.counters();
        Self::run(file.start(sealer)?, counters)
    }

    /// Verifies a whole state read-only, passes each record to `each`, and returns the highest revision.
    ///
    /// # Errors
    /// One line for the operator: each damaged place, or why the state cannot be read.
    pub fn check(dir: &Path, key: &StateKey, each: impl FnMut(Entry)) -> Result<u64, String> {
        StateFile::in_dir(dir).check(&Sealer::new(key), each)
    }

    fn run<O: Opener + Send + 'static>(
        engine: Engine<O>,
        counters: Arc<Counters>,
    ) -> Result<Self, String> {
        let (requests, received) = channel();
        let revision = Arc::new(AtomicU64::new(engine.revision()));
        let history = Arc::new(History::default());
        let busy = Arc::new(Busy {
            epoch: Instant::now(),
            since: AtomicU64::new(IDLE),
        });
        let writer = Writer {
            engine,
            is_failing: false,
            busy: Arc::clone(&busy),
            counters: Arc::clone(&counters),
            revision: Arc::clone(&revision),
            history: Arc::clone(&history),
        };
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                let run = AssertUnwindSafe(|| writer.run(&received));
                if catch_unwind(run).is_err() {
                    tracing::error!(
                        "the thread of the state panicked: no change is taken until opi-spdk is restarted; I/O goes on"
                    );
                }
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self {
            requests,
            revision,
            history,
            busy,
            counters,
        })
    }

    /// Drains the requests made before, and closes the file.
    pub async fn close(&self) {
        let (closed, wait) = oneshot::channel();
        if self.requests.send(Request::Close(closed)).is_ok() {
            // The writer thread drops the sender when it ends; the error is expected.
            let _ = wait.await;
        }
    }

    async fn ask<T: Send>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request + Send,
    ) -> Result<T, Error> {
        let (answer, wait) = oneshot::channel();
        let sent = self.requests.send(request(answer));
        sent.map_err(|_| Error::Closed)?;
        wait.await.map_err(|_| Error::Closed)?
    }
}

impl Store for Disk {
    fn commit(&self, changes: Vec<Change>, expected: Expected) -> BoxFuture<'_, Result<(), Error>> {
        let batch = Batch { changes, expected };
        Box::pin(self.ask(move |answer| Request::Commit(batch, answer)))
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>> {
        Box::pin(self.ask(move |answer| Request::Scan(prefix.to_owned(), answer)))
    }

    fn watch(&self, after: Option<u64>) -> Result<Watch, Error> {
        self.history.watch(after)
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    fn waiting(&self) -> Option<Duration> {
        self.busy.lasts()
    }

    fn stats(&self) -> Stats {
        self.counters.stats()
    }
}

struct Writer<O> {
    engine: Engine<O>,
    /// The last attempt to tidy up failed.
    is_failing: bool,
    busy: Arc<Busy>,
    counters: Arc<Counters>,
    revision: Arc<AtomicU64>,
    history: Arc<History>,
}

impl<O: Opener> Writer<O> {
    fn run(mut self, requests: &Receiver<Request>) {
        let mut next = requests.recv().ok();
        while let Some(request) = next.take() {
            self.busy.begin();
            match request {
                Request::Commit(batch, answer) => {
                    let mut group = vec![batch];
                    let mut answers = vec![answer];
                    while group.len() < GROUP_MAX {
                        match requests.try_recv() {
                            Ok(Request::Commit(batch, answer)) => {
                                group.push(batch);
                                answers.push(answer);
                            }
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit(group, answers);
                }
                Request::Scan(prefix, answer) => {
                    // The caller may have gone.
                    let _ = answer.send(self.engine.scan(&prefix));
                }
                Request::Close(closed) => {
                    self.tidy();
                    drop(self);
                    let _ = closed.send(());
                    return;
                }
            }
            self.busy.end();
            if next.is_none() {
                next = self.next(requests);
            }
        }
    }

    /// Receives the next request. While idle, confirms the last commit, and rolls back one in doubt.
    fn next(&mut self, requests: &Receiver<Request>) -> Option<Request> {
        while self.engine.is_untidy() {
            // A failing disk is not asked after each request, but at most once in a period.
            let wait = match self.is_failing {
                false => QUIET.max(self.engine.retry_after()),
                true => RETRY,
            };
            match requests.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => self.tidy(),
                other => return other.ok(),
            }
        }
        requests.recv().ok()
    }

    fn tidy(&mut self) {
        self.busy.begin();
        let tidied = self.engine.tidy();
        self.busy.end();
        if let Err(error) = &tidied
            && !self.is_failing
        {
            tracing::error!(%error, retry = ?RETRY, "the last change could not be confirmed or undone; it is retried");
        }
        self.is_failing = tidied.is_err();
    }

    fn commit(&mut self, group: Vec<Batch>, answers: Vec<oneshot::Sender<Result<(), Error>>>) {
        let results = self.engine.apply(&group);
        let stored = results.iter().filter(|result| result.is_ok());
        self.counters.add_commits(stored.count());
        let done = group.into_iter().zip(&results);
        let done = done.filter(|(_, result)| result.is_ok());
        self.history.add(done.flat_map(|(batch, _)| batch.changes));
        self.revision
            .store(self.engine.revision(), Ordering::Release);
        for (answer, result) in answers.into_iter().zip(results) {
            if let Err(
                error @ (Error::Full(_) | Error::Io(_) | Error::Damaged(_) | Error::Unknown(_)),
            ) = &result
            {
                tracing::error!(%error, "a change was not stored");
            }
            let _ = answer.send(result);
        }
    }
}

#[cfg(test)]
#[path = "doubt_tests.rs"]
mod doubt_tests;
