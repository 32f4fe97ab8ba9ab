//! Work on files of volumes, where waiting is allowed: bounded in time, and in threads, so that a file
//! system that does not answer holds up its own volumes alone.
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

/// How long one question may take, with the wait for a permit: a call asks few, and ends with the first that
/// is not answered.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Threads for the files of one directory. A file system is not known before it answers.
const PER_DIRECTORY: usize = 8;

/// Threads for all files: half of those that the runtime has for blocking work.
const IN_ALL: usize = 256;

static ALL: LazyLock<FileWork> = LazyLock::new(|| FileWork::new(TIMEOUT, PER_DIRECTORY, IN_ALL));

/// Does something with the file `path` that may wait for its file system.
///
/// # Errors
/// UNAVAILABLE if that takes too long: it then goes on by itself, and its result is dropped.
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

    /// The permits of the directory. Those that nobody uses are forgotten.
    fn directory(&self, path: &str) -> Arc<Semaphore> {
        let directory = Path::new(path).parent().unwrap_or(Path::new("/"));
        let mut directories = self.directories.lock();
        if directories.len() >= 64 {
            // A permit that is out, or waited for, has a reference too.
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
            // Those of the directory first: who waits for them takes none of the others'.
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

    /// Work that ends when the sender goes.
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
