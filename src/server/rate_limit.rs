//! Rate limits for log lines that strangers can cause. Suppressed lines are counted.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// At most one line of a kind per window.
const WINDOW: Duration = Duration::from_secs(10);

/// Lines from one call site of a library per [`WINDOW`].
const LIBRARY_LINES: u32 = 3;

/// Rate limit of one kind of line.
#[derive(Default)]
pub struct RateLimit(Mutex<Option<Last>>);

struct Last {
    at: Instant,
    left_out: u64,
}

impl RateLimit {
    /// `Some` if a line may be written now, with the number of lines suppressed before it.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        let mut last = self.0.lock();
        match &mut *last {
            Some(Last { at, left_out }) if now.saturating_duration_since(*at) < WINDOW => {
                *left_out += 1;
                None
            }
            _ => {
                let before = last.replace(Last {
                    at: now,
                    left_out: 0,
                });
                Some(before.map_or(0, |before| before.left_out))
            }
        }
    }
}

/// Limits the lines of the libraries under the server (HTTP/2, TLS), which log each fault of a client. Lines of this
/// program and of SPDK pass.
#[derive(Default)]
pub struct LibraryLines(Mutex<HashMap<Identifier, Window>>);

struct Window {
    begun: Instant,
    lines: u32,
}

const LIBRARIES: [&str; 8] = [
    "h2",
    "hyper",
    "hyper_util",
    "rustls",
    "tokio_rustls",
    "tonic",
    "tower",
    "axum",
];

impl LibraryLines {
    fn allow(&self, event: &Metadata<'_>, now: Instant) -> bool {
        let library = event.target().split("::").next().unwrap_or_default();
        if !LIBRARIES.contains(&library) {
            return true;
        }
        let mut windows = self.0.lock();
        let window = windows.entry(event.callsite()).or_insert(Window {
            begun: now,
            lines: 0,
        });
        if now.saturating_duration_since(window.begun) >= WINDOW {
            let left_out = window.lines.saturating_sub(LIBRARY_LINES);
            *window = Window {
                begun: now,
                lines: 0,
            };
            if left_out > 0 {
                drop(windows);
                tracing::warn!(library, left_out, "lines of one kind were left out");
                windows = self.0.lock();
            }
        }
        let Some(window) = windows.get_mut(&event.callsite()) else {
            return true;
        };
        window.lines = window.lines.saturating_add(1);
        window.lines <= LIBRARY_LINES
    }
}

impl<S: Subscriber> Filter<S> for LibraryLines {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.allow(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_while_tells_how_many_there_were() {
        let (limit, begun) = (RateLimit::default(), Instant::now());
        assert_eq!(limit.allow_at(begun), Some(0));
        for _ in 0..100 {
            assert_eq!(limit.allow_at(begun + WINDOW / 2), None);
        }
        assert_eq!(limit.allow_at(begun + WINDOW), Some(100));
        assert_eq!(limit.allow_at(begun + 2 * WINDOW), Some(0));
    }
}
