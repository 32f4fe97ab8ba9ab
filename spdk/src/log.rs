//! Forwards the log lines of SPDK and DPDK to `tracing`.
//!
//! A reactor only formats a line and puts it into a bounded channel; a separate thread empties the channel every few
//! milliseconds, less often while it is idle. That thread polls instead of blocking in `recv`, because waking a
//! blocked receiver takes a lock on the sender's side. When the channel is nearly full, lines are dropped and
//! counted: in a full channel a sender may hit a slot that the logging thread is just emptying, and would spin until
//! that thread is scheduled again.
//!
//! Repeated lines are rate-limited before they are formatted: see [`limit`]. Lines that only follow from an event
//! reported elsewhere are logged at level debug: see [`detail`].
//!
//! This crate's own log lines on a reactor take the same way, through [`note`].

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
use tracing::Level;

/// Capacity of the channel to the logging thread, in lines.
const CAPACITY: usize = 4096;
/// Slots that stay free: more than the number of senders that can pass the check concurrently.
const SPARE: usize = 1024;
/// Poll period of the logging thread.
const INTERVAL: Duration = Duration::from_millis(10);
/// Poll period after [`QUIET`] polls without a line: each poll costs a core some microseconds.
const QUIET_INTERVAL: Duration = Duration::from_millis(50);
/// Polls in one second.
const QUIET: u32 = 100;
/// How many of the last errors are kept, to explain a failed start.
const ERRORS_KEPT: usize = 4;
/// The file of DPDK's lines (`OPI_LOG_DPDK` in `spdk/sys/shim/shim.h`).
const DPDK: &str = "dpdk";

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

/// Line counts by place, for rate limiting.
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

/// Routes the log of SPDK and DPDK here at the level that `tracing` enables, and starts the logging thread. Before SPDK starts.
/// `takes_commands`: SPDK's JSON-RPC is served; why its commands fail is reported in the log only.
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
    // SAFETY: both callbacks have the signature that C expects and live as long as the program. Neither SPDK nor
    // DPDK has started, so no other thread logs yet.
    let rc = unsafe { sys::opi_log_configure(Some(on_line), Some(on_place), threshold()) };
    if rc != 0 {
        return Err(std::io::Error::from_raw_os_error(-rc));
    }
    // SAFETY: the sink is configured, and is a function of the program.
    unsafe { sys::spdk_log_open(Some(sys::opi_log_sink)) };
    Ok(())
}

/// Adjusts the threshold to a changed level of `tracing`. Any thread.
pub fn level_has_changed() {
    // SAFETY: stores a number atomically.
    unsafe { sys::opi_log_set_threshold(threshold()) };
}

/// Returns SPDK's level that corresponds to the level enabled in `tracing`.
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

/// Writes out the queued lines; returns whether there were any.
pub(crate) fn drain() -> bool {
    drain_to(false)
}

/// As [`drain`], and also writes the counts of rate-limited lines whose window has not ended.
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

/// Returns the last errors that SPDK logged, oldest first.
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
    let level = match line.level {
        sys::spdk_log_level_SPDK_LOG_ERROR => Level::ERROR,
        sys::spdk_log_level_SPDK_LOG_WARN => Level::WARN,
        sys::spdk_log_level_SPDK_LOG_NOTICE => Level::INFO,
        sys::spdk_log_level_SPDK_LOG_INFO => Level::DEBUG,
        _ => Level::TRACE,
    };
    /// An event's target and level must be constants.
    macro_rules! write_at {
        ($($level:ident)*) => {
            match level {
                $(Level::$level if line.file == DPDK => {
                    tracing::event!(target: "dpdk", Level::$level, "{text}")
                }
                Level::$level => {
                    let known = !line.file.is_empty();
                    let (file, number) = (known.then_some(line.file), known.then_some(line.line));
                    tracing::event!(target: "spdk", Level::$level, file, number, "{text}")
                })*
            }
        };
    }
    write_at!(ERROR WARN INFO DEBUG TRACE);
}

/// Returns the level at which a line is logged, or INT_MAX if it is suppressed. Any thread; never blocks.
unsafe extern "C" fn on_place(
    level: c_int,
    file: *const c_char,
    line: c_int,
    function: *const c_char,
) -> c_int {
    // SAFETY: SPDK passes `__FILE__` and `__func__`, string literals with static lifetime, or NULL.
    let (name, function) = unsafe { (literal(file), literal(function)) };
    let level = detail::level(level, name, function);
    match COUNTS.admit(level, place(file.cast(), line)) {
        true => level,
        false => c_int::MAX,
    }
}

/// Returns the text of a string literal; empty for NULL.
///
/// # Safety
/// `text` is NULL, or a NUL-terminated string that lives as long as the program.
unsafe fn literal(text: *const c_char) -> &'static str {
    if text.is_null() {
        return "";
    }
    // SAFETY: `text` is not null, and by the caller's contract NUL-terminated with static lifetime.
    unsafe { CStr::from_ptr::<'static>(text) }
        .to_str()
        .unwrap_or("")
}

/// Receives a formatted line from C. Any thread; never blocks.
unsafe extern "C" fn on_line(
    level: c_int,
    file: *const c_char,
    line: c_int,
    text: *const c_char,
    length: usize,
) {
    let place = place(file.cast(), line);
    // SAFETY: SPDK passes `__FILE__`, a string literal with static lifetime, or NULL.
    let file = unsafe { literal(file) };
    // SAFETY: opi_log_sink passes `length` initialized bytes at `text`, valid and unchanged until this function
    // returns.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    send(Line {
        level,
        file,
        line,
        place,
        text: String::from_utf8_lossy(text).into_owned(),
    });
}

/// Logs a line of this crate from a reactor, without blocking.
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
