//! A disk of another client: I/O with verified data all the time, which an attack must not disturb.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::disk::{Disk, Kind};

/// Between two I/Os: the core is needed for the test, too.
const PAUSE: Duration = Duration::from_millis(1);

/// Bytes of one I/O.
const LENGTH: usize = 8192;

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// I/Os that were right.
    pub ios: u64,
    /// The longest of them, with those that have not ended.
    pub slowest: Duration,
    /// What went wrong.
    pub error: Option<String>,
}

#[derive(Default)]
struct Shared {
    report: Mutex<Report>,
    begun: Mutex<Option<Instant>>,
    stop: AtomicBool,
}

/// A disk under verified I/O.
pub struct Witness {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Begins.
    pub fn start(kind: Kind, socket: PathBuf) -> Self {
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || watch(kind, &socket, &shared))
        };
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// What happened since the last report.
    pub fn report(&self) -> Report {
        let begun = *self.shared.begun.lock();
        let mut report = self.shared.report.lock();
        let error = report.error.clone();
        let mut taken = std::mem::take(&mut *report);
        report.error = error;
        if let Some(begun) = begun {
            taken.slowest = taken.slowest.max(begun.elapsed());
        }
        taken
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the witness panicked"
            );
        }
    }
}

fn watch(kind: Kind, socket: &std::path::Path, shared: &Shared) {
    let mut disk = match Disk::open(kind, socket) {
        Ok(disk) => disk,
        Err(error) => {
            shared.report.lock().error = Some(format!("connect: {error}"));
            return;
        }
    };
    let mut seed = 1;
    while !shared.stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        *shared.begun.lock() = Some(begun);
        let sector = u32::try_from(seed % 512).expect("small") * 16;
        let result = disk.verify(sector, LENGTH, seed);
        *shared.begun.lock() = None;
        let mut report = shared.report.lock();
        report.slowest = report.slowest.max(begun.elapsed());
        match result {
            Ok(()) => report.ios += 2,
            Err(error) => {
                report.error = Some(error.to_string());
                return;
            }
        }
        drop(report);
        seed += 1;
        std::thread::sleep(PAUSE);
    }
}
