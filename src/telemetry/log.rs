//! The log on stderr.
//!
//! A dedicated thread writes the lines, so that a slow reader of stderr blocks nobody: lines that find the queue full
//! are counted and reported, and so are lines whose write fails (a full disk). Before threads are started (the process
//! has yet to choose its cores) lines are written directly.

use std::io::{self, IsTerminal, Stderr, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::one_line::{Escape, OneLine};
use crate::config::{Config, LogFormat};
use crate::reload::SetLogLevel;
use crate::server::LibraryLines;

/// Capacity of the queue, in lines.
const CAPACITY: usize = 8192;

/// Interval of reports of lost lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Panics since the start.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Lines whose write failed. The log thread of tracing-appender ignores write errors.
static FAILED: AtomicU64 = AtomicU64::new(0);

/// OS error number of the last failed write since the last report; 0 if there was none.
static ERROR: AtomicI32 = AtomicI32::new(0);

/// The queue of the log thread, once it runs.
static THREAD: OnceLock<NonBlocking> = OnceLock::new();

/// Waits for the log thread when dropped.
static GUARD: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Writes lines, one in each call, and counts those whose write fails.
struct Counted<W>(W);

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.0.write_all(line) {
            FAILED.fetch_add(1, Ordering::Relaxed);
            ERROR.store(error.raw_os_error().unwrap_or_default(), Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Destination of an event.
enum Out {
    Direct(Counted<Stderr>),
    Thread(NonBlocking),
}

impl Out {
    fn now() -> Self {
        match THREAD.get() {
            Some(thread) => Self::Thread(thread.clone()),
            None => Self::Direct(Counted(io::stderr())),
        }
    }
}

impl Write for Out {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match self {
            Self::Direct(stderr) => stderr.write_all(event)?,
            Self::Thread(thread) => thread.write_all(event)?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the log thread, which inherits the CPU affinity of the calling thread. Call it once per process.
pub fn written_by_a_thread() {
    let (lines, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(CAPACITY)
        .lossy(true)
        .thread_name("log")
        .finish(Counted(io::stderr()));
    if THREAD.set(lines).is_ok() {
        *GUARD.lock() = Some(guard);
    }
    // A panic must not wait for stderr either: its thread may be a reactor.
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tracing::error!("{panic}");
    }));
}

/// Flushes the last lines, for a second at most. Later lines are lost.
pub fn finish() {
    let guard = GUARD.lock().take();
    drop(guard);
}

/// Panics of any thread since the start. Each is a bug, whose damage one call, one attempt or one monitor contains.
pub(super) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Lines lost since start: the queue was full, or the write failed.
pub(super) fn lost() -> u64 {
    let dropped = THREAD
        .get()
        .map(|lines| lines.error_counter().dropped_lines());
    let dropped = dropped.unwrap_or_default().try_into().unwrap_or(u64::MAX);
    FAILED.load(Ordering::Relaxed).saturating_add(dropped)
}

/// Reports lost lines, as long as the process runs.
///
/// On a full disk the report is lost, too, and counted: one line per interval, until a report can be written. Its total
/// includes the lost reports.
pub async fn tell_of_losses() {
    let mut told = 0;
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        let lost = lost();
        if lost > told {
            let error = match ERROR.swap(0, Ordering::Relaxed) {
                0 => None,
                number => Some(io::Error::from_raw_os_error(number)),
            };
            tracing::warn!(
                lines = lost - told,
                total = lost,
                error = error.map(tracing::field::display),
                "the log has lost lines: stderr cannot be written, or what reads it is too slow"
            );
            told = lost;
        }
    }
}

/// Sets up logging by `config`. The returned function changes the level.
///
/// # Errors
/// One line for the operator.
pub fn init(config: &Config) -> Result<SetLogLevel, String> {
    let filter = EnvFilter::try_new(&config.log_level)
        .map_err(|error| format!("log-level {:?}: {error}", config.log_level))?;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let colours = std::io::stderr().is_terminal();
    let escape = match config.log_format {
        LogFormat::Json => Escape::Json,
        LogFormat::Text if colours => Escape::Coloured,
        LogFormat::Text => Escape::Text,
    };
    let writer = move || OneLine::new(Out::now(), escape);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match config.log_format {
        LogFormat::Text => layer.with_ansi(colours).boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer.with_filter(LibraryLines::default()))
        .init();
    Ok(Box::new(move |level| {
        let filter = EnvFilter::try_new(level);
        let filter = filter.map_err(|error| format!("log-level {level:?}: {error}"))?;
        handle.reload(filter).map_err(|error| error.to_string())?;
        spdk::log_level_has_changed();
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_whose_write_fails_are_counted_with_the_error() {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut log = Counted(full.expect("/dev/full opens"));
        let before = lost();
        for _ in 0..2 {
            log.write_all(b"a line\n").expect("counted instead");
        }
        assert_eq!(lost() - before, 2);
        let error = io::Error::from_raw_os_error(ERROR.load(Ordering::Relaxed));
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
