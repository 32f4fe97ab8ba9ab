//! Rate limiting of log lines: a guest, or a peer that is down, can make SPDK log the same line for each I/O.
//!
//! Of the errors and warnings of one place (source file and line) the first [`BURST`] in a window are logged. The
//! others are counted at their source, before they are formatted; one line at the end of the window reports their
//! number. While a place keeps logging, its windows become longer (backoff).
//!
//! ```text
//! quiet ─► line ─► window of 10 s ─┬─ few lines ─► quiet
//!                     ▲            └─ many ─► their number is logged ─► window twice as long ─┐
//!                     └───────────────────────────────────────────────────────────────────────┘
//! ```

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use spdk_sys as sys;

/// Lines of one place logged per window.
const BURST: u32 = 3;
/// The length of a place's first window.
const WINDOW: Duration = Duration::from_secs(10);
/// How often a window's length is doubled at most: to 320 s.
const DOUBLINGS: u32 = 5;
/// Maximum number of places counted; lines of further places are not limited.
const SLOTS: usize = 4096;
/// Slots probed for a place.
const TRIES: usize = 16;

/// A place in the source that logs.
pub(super) type Place = u64;

/// Returns the place of a line in a file, which is identified by the address of its name.
pub(super) fn place(file: *const u8, line: c_int) -> Place {
    // A user-space address has 47 bits. The highest bit is set so that no place is 0.
    (file as u64) ^ (u64::from(line.unsigned_abs()) << 47) | 1 << 63
}

/// Lines of each place in its current window. Any thread; lock-free.
pub(super) struct Counts<const N: usize = SLOTS> {
    slots: [(AtomicU64, AtomicU32); N],
}

impl<const N: usize> Counts<N> {
    pub(super) const fn new() -> Self {
        Self {
            slots: [const { (AtomicU64::new(0), AtomicU32::new(0)) }; N],
        }
    }

    /// Returns whether a line of this level from this place may be logged.
    pub(super) fn admit(&self, level: c_int, place: Place) -> bool {
        // Notices report events once each, and lower levels were enabled on purpose: neither is limited.
        let limited = level <= sys::spdk_log_level_SPDK_LOG_WARN;
        let count = limited.then(|| self.count(place)).flatten();
        count.is_none_or(|count| count.fetch_add(1, Ordering::Relaxed) < BURST)
    }

    /// Resets the count; returns how many lines were suppressed.
    fn take_surplus(&self, place: Place) -> u32 {
        let count = self
            .count(place)
            .map(|count| count.swap(0, Ordering::Relaxed));
        count.unwrap_or_default().saturating_sub(BURST)
    }

    /// Returns the place's slot, which it never gives up; `None` if no probed slot is free.
    fn count(&self, place: Place) -> Option<&AtomicU32> {
        let first = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 16;
        (0..TRIES).find_map(|step| {
            let (owner, count) = self.slots.get(first.wrapping_add(step) % N)?;
            let taken = owner.compare_exchange(0, place, Ordering::Relaxed, Ordering::Relaxed);
            (taken.is_ok() || taken == Err(place)).then_some(count)
        })
    }
}

/// The current window of a place.
struct Window<T> {
    ends: Instant,
    doublings: u32,
    /// The line that the window began with.
    line: T,
}

/// The windows of all places that logged recently. Used by the logging thread only.
pub(super) struct Windows<T>(HashMap<Place, Window<T>>);

impl<T> Windows<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Records a line that was logged.
    pub(super) fn note(&mut self, place: Place, now: Instant, line: impl FnOnce() -> T) {
        self.0.entry(place).or_insert_with(|| Window {
            ends: now + WINDOW,
            doublings: 0,
            line: line(),
        });
    }

    /// Ends the windows that are over, or all of them, and passes the suppressed lines to `surplus`: their number,
    /// the window's length, and its first line.
    pub(super) fn end<const N: usize>(
        &mut self,
        counts: &Counts<N>,
        now: Instant,
        all: bool,
        mut surplus: impl FnMut(u32, Duration, &T),
    ) {
        self.0.retain(|place, window| {
            if !all && now < window.ends {
                return true;
            }
            let count = counts.take_surplus(*place);
            if count == 0 {
                return false;
            }
            surplus(count, WINDOW * (1 << window.doublings), &window.line);
            window.doublings = DOUBLINGS.min(window.doublings + 1);
            window.ends = now + WINDOW * (1 << window.doublings);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: c_int = sys::spdk_log_level_SPDK_LOG_ERROR;

    fn some_place(line: c_int) -> Place {
        place(b"file".as_ptr(), line)
    }

    fn ended(windows: &mut Windows<()>, counts: &Counts<64>, now: Instant) -> Vec<(u32, u64)> {
        let mut all = Vec::new();
        windows.end(counts, now, false, |count, window, ()| {
            all.push((count, window.as_secs()));
        });
        all
    }

    #[test]
    fn a_flood_is_a_few_lines_and_their_number_and_more_seldom_the_longer_it_goes_on() {
        let (counts, mut windows) = (Counts::<64>::new(), Windows::new());
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let flood = |windows: &mut Windows<()>, now| {
            let admitted = (0..200).filter(|_| counts.admit(ERROR, some_place(7)));
            let admitted = admitted.count();
            windows.note(some_place(7), now, || ());
            admitted
        };
        assert_eq!(flood(&mut windows, at(0)), 3);
        assert!(counts.admit(ERROR, some_place(8)), "another place");
        assert_eq!(ended(&mut windows, &counts, at(9)), []);
        assert_eq!(ended(&mut windows, &counts, at(10)), [(197, 10)]);
        assert_eq!(flood(&mut windows, at(11)), 3);
        assert_eq!(ended(&mut windows, &counts, at(29)), []);
        assert_eq!(ended(&mut windows, &counts, at(30)), [(197, 20)]);
        // The window ended without suppressed lines, so the next line starts a new one.
        assert_eq!(ended(&mut windows, &counts, at(70)), []);
        assert!(windows.0.is_empty());
        assert_eq!(flood(&mut windows, at(71)), 3);
        assert_eq!(ended(&mut windows, &counts, at(81)), [(197, 10)]);
    }

    #[test]
    fn what_was_asked_for_and_what_has_no_slot_is_let_through() {
        let counts = Counts::<4>::new();
        for level in [
            sys::spdk_log_level_SPDK_LOG_DEBUG,
            sys::spdk_log_level_SPDK_LOG_NOTICE,
        ] {
            assert!((0..100).all(|_| counts.admit(level, some_place(1))));
        }
        for line in 0..4 {
            assert!((0..3).all(|_| counts.admit(ERROR, some_place(line))));
            assert!(!counts.admit(ERROR, some_place(line)));
        }
        assert!((0..100).all(|_| counts.admit(ERROR, some_place(99))));
    }
}
