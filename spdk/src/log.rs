//! SPDK's log lines, brought into `tracing`.
//!
//! A reactor only formats a line and drops it into a bounded channel; a thread
//! of its own empties the channel every few milliseconds, and less often while nothing comes. It polls rather than
//! sleeps in `recv`, because waking a sleeper takes a lock on the sender's side.
//! When the channel is nearly full the line is counted and dropped: in a full one a
//! sender can meet a slot that the logging thread is just emptying, and would spin
//! until that thread is scheduled again.
//!
//! Of a flood of one line a few are formatted and sent at all: see [`limit`]. What follows from an event that is
//! told elsewhere is logged at level debug: see [`detail`].
//!
//! What this crate itself has to say on a reactor goes the same way, by [`note`].

mod detail;
mod limit;

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use limit::{Counts, Place, Windows, place};
use spdk_sys as sys;

/// Lines that wait for the logging thread at most.
const CAPACITY: usize = 4096;
/// Slots that stay free: more than there are senders that can look at once.
const SPARE: usize = 1024;
/// How often the logging thread looks.
const INTERVAL: Duration = Duration::from_millis(10);
/// The same once nothing has come for [`QUIET`] looks: each costs a core some microseconds.
const QUIET_INTERVAL: Duration = Duration::from_millis(50);
/// A second without a line.
const QUIET: u32 = 100;
/// How many of the last errors are kept, to explain a start that fails.
const ERRORS_KEPT: usize = 4;

#[derive(Clone)]
struct Line {
    level: c_int,
    file: &'static str,
    line: c_int,
    place: Place,
    text: String,
}

struct Channel {
    sender: Sender<Line>,
    receiver: Receiver<Line>,
    dropped: AtomicU64,
    errors: Mutex<VecDeque<String>>,
    windows: Mutex<Windows<Line>>,
}

/// The lines of each place.
static COUNTS: Counts = Counts::new();

static CHANNEL: OnceLock<Channel> = OnceLock::new();

fn channel() -> &'static Channel {
    CHANNEL.get_or_init(|| {
        let (sender, receiver) = crossbeam_channel::bounded(CAPACITY);
        Channel {
            sender,
            receiver,
            dropped: AtomicU64::new(0),
            errors: Mutex::new(VecDeque::new()),
            windows: Mutex::new(Windows::new()),
        }
    })
}

/// Routes SPDK's log here, at the level that `tracing` lets through, and starts
/// the logging thread. Before SPDK starts. What SPDK's own commands fail of, if it takes any, is in its log alone.
pub(crate) fn install(takes_commands: bool) -> std::io::Result<()> {
    if takes_commands {
        detail::keep_causes();
    }
    if CHANNEL.get().is_some() {
        return Ok(());
    }
    channel();
    std::thread::Builder::new()
        .name("spdk-log".to_owned())
        .spawn(|| {
            let mut quiet = 0;
            loop {
                quiet = if drain() { 0 } else { QUIET.min(quiet + 1) };
                std::thread::sleep(if quiet < QUIET {
                    INTERVAL
                } else {
                    QUIET_INTERVAL
                });
            }
        })?;
    // SAFETY: `on_line` has the C signature and lives as long as the program;
    // SPDK has not started, so no other thread logs yet.
    unsafe {
        sys::opi_log_configure(Some(on_line), Some(on_place), threshold());
        sys::spdk_log_open(Some(sys::opi_log_sink));
    }
    Ok(())
}

/// Lets through what `tracing` does now: its level has changed. Any thread.
pub fn level_has_changed() {
    // SAFETY: it stores a number, atomically.
    unsafe { sys::opi_log_set_threshold(threshold()) };
}

/// SPDK's level that corresponds to what `tracing` lets through.
fn threshold() -> c_int {
    if tracing::enabled!(target: "spdk", tracing::Level::TRACE) {
        sys::spdk_log_level_SPDK_LOG_DEBUG
    } else if tracing::enabled!(target: "spdk", tracing::Level::DEBUG) {
        sys::spdk_log_level_SPDK_LOG_INFO
    } else if tracing::enabled!(target: "spdk", tracing::Level::INFO) {
        sys::spdk_log_level_SPDK_LOG_NOTICE
    } else if tracing::enabled!(target: "spdk", tracing::Level::WARN) {
        sys::spdk_log_level_SPDK_LOG_WARN
    } else {
        sys::spdk_log_level_SPDK_LOG_ERROR
    }
}

/// Writes out what has come so far; whether that was anything.
pub(crate) fn drain() -> bool {
    drain_to(false)
}

/// The same, and the counts of floods that have not ended.
pub(crate) fn finish() {
    drain_to(true);
}

fn drain_to(end: bool) -> bool {
    let channel = channel();
    let windows = channel.windows.lock();
    let mut windows = windows.unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let mut came = false;
    while let Ok(line) = channel.receiver.try_recv() {
        came = true;
        write(&line, &line.text);
        windows.note(line.place, now, || line.clone());
        if line.level == sys::spdk_log_level_SPDK_LOG_ERROR {
            let mut errors = channel
                .errors
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if errors.len() == ERRORS_KEPT {
                errors.pop_front();
            }
            errors.push_back(line.text);
        }
    }
    windows.end(&COUNTS, now, end, |count, within, line| {
        let text = format!(
            "{count} more such lines within {} s: {}",
            within.as_secs(),
            line.text
        );
        write(line, &text);
    });
    let dropped = channel.dropped.swap(0, Ordering::Relaxed);
    if dropped > 0 {
        tracing::warn!(target: "spdk", dropped, "log lines were dropped: too many at once");
    }
    came
}

/// The last errors that SPDK logged, oldest first.
pub(crate) fn last_errors() -> Vec<String> {
    drain();
    let errors = channel().errors.lock();
    errors
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .cloned()
        .collect()
}

fn write(line: &Line, text: &str) {
    let Line {
        file,
        line: number,
        level,
        ..
    } = line;
    match *level {
        sys::spdk_log_level_SPDK_LOG_ERROR => {
            tracing::error!(target: "spdk", file, number, "{text}")
        }
        sys::spdk_log_level_SPDK_LOG_WARN => tracing::warn!(target: "spdk", file, number, "{text}"),
        sys::spdk_log_level_SPDK_LOG_NOTICE => {
            tracing::info!(target: "spdk", file, number, "{text}")
        }
        sys::spdk_log_level_SPDK_LOG_INFO => {
            tracing::debug!(target: "spdk", file, number, "{text}")
        }
        _ => tracing::trace!(target: "spdk", file, number, "{text}"),
    }
}

/// The level at which a line is logged, if it is to be formatted at all. On any thread, without waiting.
unsafe extern "C" fn on_place(
    level: c_int,
    file: *const c_char,
    line: c_int,
    function: *const c_char,
) -> c_int {
    // SAFETY: SPDK passes `__FILE__` and `__func__`, or NULL.
    let (name, function) = unsafe { (literal(file), literal(function)) };
    let level = detail::level(level, name, function);
    match COUNTS.admit(level, place(file.cast(), line)) {
        true => level,
        false => c_int::MAX,
    }
}

/// The text of a literal, empty for NULL.
///
/// # Safety
/// A terminated string that lives as long as the program, or NULL.
unsafe fn literal(text: *const c_char) -> &'static str {
    if text.is_null() {
        return "";
    }
    // SAFETY: the caller's contract.
    unsafe { CStr::from_ptr::<'static>(text) }
        .to_str()
        .unwrap_or("")
}

/// Takes a line from C, on any thread, without waiting.
unsafe extern "C" fn on_line(
    level: c_int,
    file: *const c_char,
    line: c_int,
    text: *const c_char,
    length: usize,
) {
    let place = place(file.cast(), line);
    // SAFETY: SPDK passes `__FILE__`, or NULL.
    let file = unsafe { literal(file) };
    // SAFETY: opi_log_sink passes `length` initialised bytes at `text`, which
    // stay until this function returns.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    send(Line {
        level,
        file,
        line,
        place,
        text: String::from_utf8_lossy(text).into_owned(),
    });
}

/// Logs a line of this crate from a reactor, without waiting.
#[track_caller]
pub(crate) fn note(level: c_int, text: String) {
    let caller = std::panic::Location::caller();
    let line = c_int::try_from(caller.line()).unwrap_or_default();
    let place = place(caller.file().as_ptr(), line);
    if COUNTS.admit(level, place) {
        send(Line {
            level,
            file: caller.file(),
            line,
            place,
            text,
        });
    }
}

fn send(line: Line) {
    let channel = channel();
    let fits = channel.sender.len() < CAPACITY - SPARE;
    if !fits || channel.sender.try_send(line).is_err() {
        channel.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
