//! Blocking work on the files of volumes, bounded by a timeout and by the number of threads, so that an unresponsive
//! file system blocks only its own volumes.
//!
//! ```text
//!   open, lock, size ──► a permit of the file's directory ──► a blocking thread ──► answer
//!                            │ none is free in time              │ no answer in time
//!                            └──────────► UNAVAILABLE ◄──────────┘ (the thread keeps its permit)
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::error::Error;

/// Timeout of one operation, including the wait for a permit. A call runs few operations and ends at the first that
/// times out.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Thread limit for the files of one directory: which file system a file is on is unknown until it answers.
const PER_DIRECTORY: usize = 8;

/// Thread limit for all files: half of the runtime's blocking threads.
const IN_ALL: usize = 256;

static ALL: LazyLock<FileWork> = LazyLock::new(|| FileWork::new(TIMEOUT, PER_DIRECTORY, IN_ALL));

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

struct FileWork {
    timeout: Duration,
    per_directory: usize,
    in_all: Arc<Semaphore>,
    directories: Mutex<HashMap<PathBuf, Arc<Semaphore>>>,
}

impl FileWork {
    fn new(timeout: Duration, per_directory: usize, in_all: usize) -> Self {
        Self {
            timeout,
            per_directory,
            in_all: Arc::new(Semaphore::new(in_all)),
            directories: Mutex::default(),
        }
    }

    /// Returns the semaphore of the directory. Unused semaphores are evicted.
    fn directory(&self, path: &str) -> Arc<Semaphore> {
        let directory = Path::new(path).parent().unwrap_or(Path::new("/"));
        let mut directories = self.directories.lock();
        if directories.len() >= 64 {
            // A permit that is held, or waited for, has a reference of its own.
            directories.retain(|_, permits| Arc::strong_count(permits) > 1);
        }
        let permits = directories.entry(directory.to_owned());
        let permits = permits.or_insert_with(|| Arc::new(Semaphore::new(self.per_directory)));
        Arc::clone(permits)
    }

    async fn run<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.timeout;
        let directory = self.directory(path);
        let permits = async {
            // Directory permit first: a task that waits for it must not hold a global one.
            let own = directory.acquire_owned().await?;
            let of_all = Arc::clone(&self.in_all).acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>((own, of_all))
        };
        let Ok(permits) = timeout_at(deadline, permits).await else {
            return Err(self.silent(path, "other work on files of its directory has not ended"));
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
        let files = FileWork::new(Duration::from_millis(100), 2, 8);
        let mut freed = Vec::new();
        for at in 0..4 {
            let (free, work) = stuck();
            freed.push(free);
            let error = files.run("/dead/a", work).await.unwrap_err().to_string();
            let why = if at < 2 { "file system" } else { "other work" };
            assert!(error.contains(why) && error.contains("/dead/a"), "{error}");
        }
        assert_eq!(files.in_all.available_permits(), 6, "two threads are stuck");
        assert_eq!(files.run("/alive/a", || Ok(7)).await, Ok(7));
        drop(freed);
        let again = async { while files.run("/dead/b", || Ok(8)).await != Ok(8) {} };
        let again = tokio::time::timeout(Duration::from_secs(30), again).await;
        again.expect("it answers again");
    }

    #[tokio::test]
    async fn directories_without_work_are_forgotten() {
        let files = FileWork::new(Duration::from_secs(30), 2, 8);
        for at in 0..200 {
            assert_eq!(files.run(&format!("/{at}/a"), move || Ok(at)).await, Ok(at));
        }
        assert!(files.directories.lock().len() <= 65);
    }
}
