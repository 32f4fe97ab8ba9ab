//! Blocking work on the files of volumes, bounded by a timeout and by the number of threads, so that an unresponsive
//! file or file system blocks only its own volumes.
//!
//! ```text
//!   open, lock, size ──► a permit of the file, then of its directory, then of all ──► a blocking thread ──► answer
//!                            │ none is free in time                                     │ no answer in time
//!                            └─────────────────► UNAVAILABLE ◄──────────────────────────┘ (the thread keeps its permits)
//!   close ─────────────► the same permits, however long they take: a close is never refused
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::Error;

/// Timeout of one operation, including the wait for its permits. A call runs few operations and ends at the first that
/// times out.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Thread limit for one file, so that a file that hangs leaves its directory to the others.
const PER_FILE: usize = 2;

/// Thread limit for the files of one directory: which file system a file is on is unknown until it answers.
const PER_DIRECTORY: usize = 8;

/// Thread limit for all files: half of the runtime's blocking threads.
const IN_ALL: usize = 256;

static ALL: LazyLock<FileWork> =
    LazyLock::new(|| FileWork::new(TIMEOUT, PER_FILE, PER_DIRECTORY, IN_ALL));

/// Runs `work` on the file `path` on a blocking thread.
///
/// # Errors
/// UNAVAILABLE on timeout: the work continues in the background and its result is dropped.
pub(super) async fn run<T: Send + 'static>(
    path: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    ALL.run(path, work).await
}

/// Runs `work`, which ends the use of the file `path`, on a blocking thread, once there are permits for it. Not to be
/// dropped before its end: to be spawned.
pub(super) async fn end(path: String, work: impl FnOnce() + Send + 'static) {
    ALL.end(&path, work).await;
}

/// Returns the directory whose files may hang together; `None` for a device, which hangs alone.
pub(super) fn directory(path: &str) -> Option<&Path> {
    let directory = Path::new(path).parent().unwrap_or(Path::new("/"));
    (!directory.starts_with("/dev")).then_some(directory)
}

/// Semaphores by path. Unused ones are evicted.
struct Places {
    permits: usize,
    known: Mutex<HashMap<PathBuf, Arc<Semaphore>>>,
}

impl Places {
    fn new(permits: usize) -> Self {
        Self {
            permits,
            known: Mutex::default(),
        }
    }

    fn of(&self, path: &Path) -> Arc<Semaphore> {
        let mut known = self.known.lock();
        if known.len() >= 64 {
            // A permit that is held, or waited for, has a reference of its own.
            known.retain(|_, permits| Arc::strong_count(permits) > 1);
        }
        let permits = known.entry(path.to_owned());
        let permits = permits.or_insert_with(|| Arc::new(Semaphore::new(self.permits)));
        Arc::clone(permits)
    }
}

/// Permits for one piece of work: of its file, of the directory, and of all.
type Permits = (
    OwnedSemaphorePermit,
    Option<OwnedSemaphorePermit>,
    OwnedSemaphorePermit,
);

struct FileWork {
    timeout: Duration,
    files: Places,
    directories: Places,
    in_all: Arc<Semaphore>,
}

impl FileWork {
    fn new(timeout: Duration, per_file: usize, per_directory: usize, in_all: usize) -> Self {
        Self {
            timeout,
            files: Places::new(per_file),
            directories: Places::new(per_directory),
            in_all: Arc::new(Semaphore::new(in_all)),
        }
    }

    /// Acquires the narrowest permit first: a task that waits for one must not hold a wider one.
    async fn permits(&self, path: &str) -> Result<Permits, AcquireError> {
        let of_file = self.files.of(Path::new(path)).acquire_owned().await?;
        let of_directory = match directory(path) {
            Some(directory) => Some(self.directories.of(directory).acquire_owned().await?),
            None => None,
        };
        let of_all = Arc::clone(&self.in_all).acquire_owned().await?;
        Ok((of_file, of_directory, of_all))
    }

    async fn run<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.timeout;
        let Ok(permits) = timeout_at(deadline, self.permits(path)).await else {
            return Err(self.silent(path, "other work on it or its directory has not ended"));
        };
        let permits = permits.map_err(|error| Error::internal("working on a file", error))?;
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permits);
            result
        });
        match timeout_at(deadline, task).await {
            Ok(ended) => ended.map_err(|error| Error::internal("working on a file", error))?,
            Err(_) => Err(self.silent(path, "its file system has not answered")),
        }
    }

    async fn end(&self, path: &str, work: impl FnOnce() + Send + 'static) {
        // The semaphores are never closed.
        let permits = self.permits(path).await.ok();
        let task = tokio::task::spawn_blocking(move || {
            work();
            drop(permits);
        });
        if let Err(error) = task.await {
            tracing::error!(path, %error, "closing a file did not come to its end");
        }
    }

    fn silent(&self, path: &str, what: &str) -> Error {
        let timeout = self.timeout;
        Error::Unavailable(format!("filename: {path:?}: {what} within {timeout:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Work that blocks until the sender is dropped.
    fn stuck() -> (
        Sender<()>,
        impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) {
        let (free, waits) = channel::<()>();
        let work = move || {
            let _ = waits.recv();
            Ok(())
        };
        (free, work)
    }

    #[tokio::test]
    async fn a_file_system_that_does_not_answer_holds_up_its_own_files_alone() {
        let files = FileWork::new(Duration::from_millis(100), 1, 2, 8);
        let mut freed = Vec::new();
        for (at, path) in (0..).zip(["/dead/a", "/dead/b", "/dead/c", "/dead/d"]) {
            let (free, work) = stuck();
            freed.push(free);
            let error = files.run(path, work).await.unwrap_err().to_string();
            let why = if at < 2 { "file system" } else { "other work" };
            assert!(error.contains(why) && error.contains(path), "{error}");
        }
        assert_eq!(files.in_all.available_permits(), 6, "two threads are stuck");
        assert_eq!(files.run("/alive/a", || Ok(7)).await, Ok(7));
        drop(freed);
        let again = async { while files.run("/dead/b", || Ok(8)).await != Ok(8) {} };
        let again = tokio::time::timeout(Duration::from_secs(30), again).await;
        again.expect("it answers again");
    }

    #[tokio::test]
    async fn a_file_that_hangs_leaves_its_directory_to_the_others() {
        let files = FileWork::new(Duration::from_millis(100), 1, 2, 64);
        let mut freed = Vec::new();
        for path in ["/dir/hung", "/dir/hung", "/dir/hung"] {
            let (free, work) = stuck();
            freed.push(free);
            files.run(path, work).await.unwrap_err();
        }
        assert_eq!(files.run("/dir/alive", || Ok(7)).await, Ok(7));
        // Devices share a directory, and nothing else.
        for device in 0..20 {
            let (free, work) = stuck();
            freed.push(free);
            let path = format!("/dev/hung{device}");
            files.run(&path, work).await.unwrap_err();
        }
        assert_eq!(files.run("/dev/alive", || Ok(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn a_close_waits_for_its_turn_and_is_never_refused() {
        let files = Arc::new(FileWork::new(Duration::from_millis(100), 1, 2, 8));
        let (closed, mut closes) = tokio::sync::mpsc::unbounded_channel();
        let mut freed = Vec::new();
        for at in 0..20 {
            let (free, work) = stuck();
            freed.push(free);
            let (files, closed) = (Arc::clone(&files), closed.clone());
            tokio::spawn(async move {
                let close = move || {
                    work().unwrap();
                    closed.send(()).unwrap();
                };
                files.end(&format!("/dead/{at}"), close).await;
            });
        }
        let busy = async {
            while files.in_all.available_permits() > 6 {
                tokio::task::yield_now().await;
            }
        };
        let busy = tokio::time::timeout(Duration::from_secs(30), busy).await;
        busy.expect("the first of them run");
        assert_eq!(files.run("/alive/a", || Ok(7)).await, Ok(7));
        assert_eq!(files.in_all.available_permits(), 6, "no more than two run");
        assert!(closes.try_recv().is_err());
        drop((freed, closed));
        for _ in 0..20 {
            let closed = tokio::time::timeout(Duration::from_secs(30), closes.recv()).await;
            closed.expect("it is closed").expect("it is told");
        }
    }

    #[tokio::test]
    async fn directories_without_work_are_forgotten() {
        let files = FileWork::new(Duration::from_secs(30), 2, 2, 8);
        for at in 0..200 {
            assert_eq!(files.run(&format!("/{at}/a"), move || Ok(at)).await, Ok(at));
        }
        assert!(files.directories.known.lock().len() <= 65);
        assert!(files.files.known.lock().len() <= 65);
    }
}
