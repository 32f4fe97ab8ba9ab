//! Floods of one log line: a guest or a peer that is away can have SPDK log the same for each I/O.
//!
//! The first [`BURST`] errors or warnings of a place (file and line of the source) within a window are let through, the
//! others are counted where they arise, before they are formatted; when the window ends one line tells how
//! many there were. While a place goes on so, its windows become longer.
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

/// Lines of one place that a window lets through.
const BURST: u32 = 3;
/// The first window of a place.
const WINDOW: Duration = Duration::from_secs(10);
/// So many times a window is doubled at most: to 320 s.
const DOUBLINGS: u32 = 5;
/// Places that are counted; the lines of others are let through.
const SLOTS: usize = 4096;
/// Slots that are tried for a place.
const TRIES: usize = 16;

/// A place in the source that logs.
pub(super) type Place = u64;

/// The place at this line of a file, whose name is known by its address.
pub(super) fn place(file: *const u8, line: c_int) -> Place {
    // An address of a user has 47 bits. The highest is set so that no place is 0.
    (file as u64) ^ (u64::from(line.unsigned_abs()) << 47) | 1 << 63
}

/// How many lines each place has had in its window. Any thread, without waiting.
pub(super) struct Counts<const N: usize = SLOTS> {
    slots: [(AtomicU64, AtomicU32); N],
}

impl<const N: usize> Counts<N> {
    pub(super) const fn new() -> Self {
        Self {
            slots: [const { (AtomicU64::new(0), AtomicU32::new(0)) }; N],
        }
    }

    /// Whether a line of this level from this place may be logged.
    pub(super) fn admit(&self, level: c_int, place: Place) -> bool {
        // Notices are events that are told once each; whoever asks for more wants all of it.
        let limited = level <= sys::spdk_log_level_SPDK_LOG_WARN;
        let count = limited.then(|| self.count(place)).flatten();
        count.is_none_or(|count| count.fetch_add(1, Ordering::Relaxed) < BURST)
    }

    /// Begins the count anew; how many lines were not let through.
    fn take_surplus(&self, place: Place) -> u32 {
        let count = self
            .count(place)
            .map(|count| count.swap(0, Ordering::Relaxed));
        count.unwrap_or_default().saturating_sub(BURST)
    }

    /// The place's slot, which it keeps; `None` if there is none for it.
    fn count(&self, place: Place) -> Option<&AtomicU32> {
        let first = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 16;
        (0..TRIES).find_map(|step| {
            let (owner, count) = self.slots.get(first.wrapping_add(step) % N)?;
            let taken = owner.compare_exchange(0, place, Ordering::Relaxed, Ordering::Relaxed);
            (taken.is_ok() || taken == Err(place)).then_some(count)
        })
    }
}

/// The window of a place.
struct Window<T> {
    ends: Instant,
    doublings: u32,
    /// The line that it began with.
    line: T,
}

/// The windows of all places that have logged of late. For the logging thread.
pub(super) struct Windows<T>(HashMap<Place, Window<T>>);

impl<T> Windows<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Takes note of a line that was let through.
    pub(super) fn note(&mut self, place: Place, now: Instant, line: impl FnOnce() -> T) {
        self.0.entry(place).or_insert_with(|| Window {
            ends: now + WINDOW,
            doublings: 0,
            line: line(),
        });
    }

    /// Ends windows whose time is over, or all of them, and tells `surplus` of the lines that were not let
    /// through: how many, since when, and the first line of the window.
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
        // It ends, and what comes then is news.
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
