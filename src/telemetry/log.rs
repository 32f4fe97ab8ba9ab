//! The log on stderr.
//!
//! A dedicated thread writes the lines, so that a slow reader of stderr blocks nobody: lines that find the queue full
//! are counted and reported. Before threads are started (the process has yet to choose its cores) lines are written
//! directly.

use std::io::{self, IsTerminal, Stderr, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// The queue of the log thread, once it runs.
static THREAD: OnceLock<NonBlocking> = OnceLock::new();

/// Waits for the log thread when dropped.
static GUARD: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Destination of an event.
enum Out {
    Direct(Stderr),
    Thread(NonBlocking),
}

impl Out {
    fn now() -> Self {
        match THREAD.get() {
            Some(thread) => Self::Thread(thread.clone()),
            None => Self::Direct(io::stderr()),
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
        .finish(io::stderr());
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

/// Lines lost since start.
pub(super) fn lost() -> u64 {
    let lost = THREAD
        .get()
        .map(|lines| lines.error_counter().dropped_lines());
    lost.unwrap_or_default().try_into().unwrap_or(u64::MAX)
}

/// Reports lost lines, as long as the process runs.
pub async fn tell_of_losses() {
    let mut told = 0;
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        let lost = lost();
        if lost > told {
            tracing::warn!(
                lines = lost - told,
                "the log has lost lines: what reads stderr is too slow"
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
