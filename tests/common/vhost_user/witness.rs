//! Another client's disk under continuous verified I/O, which an attack must not disturb.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::disk::{Disk, Kind};

/// Pause between two I/Os: the test needs the core too.
const PAUSE: Duration = Duration::from_millis(1);

/// Bytes per I/O.
const LENGTH: usize = 8192;

/// A witness's observations.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Number of verified I/Os.
    pub ios: u64,
    /// Highest latency, I/O in flight included.
    pub slowest: Duration,
    /// The first error.
    pub error: Option<String>,
}

#[derive(Default)]
struct Shared {
    report: Mutex<Report>,
    begun: Mutex<Option<Instant>>,
    stop: AtomicBool,
}

/// A disk under verified I/O; stops on drop.
pub struct Witness {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Starts the I/O.
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

    /// Returns the observations since the last report.
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
