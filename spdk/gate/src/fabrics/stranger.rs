//! Rate limiting of authentication by source: exponential backoff after repeated failures. A source that has
//! authenticated successfully is exempt for a while.

/// Failures without a delay, since keys and names are mistyped.
pub const FREE: u8 = 8;

/// The interval between attempts after the first failure beyond [`FREE`], ms. It doubles with each failure.
pub const FIRST_MS: u64 = 100;

/// The upper bound of the interval between attempts, ms.
pub const TURN_MAX_MS: u64 = 2_000;

/// The longest queueing delay, ms: the deadline for a connection to be admitted.
pub const WAIT_MAX_MS: u64 = 10_000;

/// Time without a failure or an attempt after which failures are forgotten, ms.
pub const FORGET_MS: u64 = 60_000;

/// Time after a successful authentication without delays, ms. Bounded, since an address may pass to another host.
pub const KNOWN_MS: u64 = 3_600_000;

const KNOWN: u64 = 1 << 63;
const COUNT_SHIFT: u32 = 56;
const COUNT_MAX: u8 = 0x7f;
const TAG_SHIFT: u32 = 40;
const TIME: u64 = (1 << TAG_SHIFT) - 1;

/// The history of one source, which fits a word so that it can be updated atomically.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stranger {
    known: bool,
    refusals: u8,
    /// Part of the source's hash that is not in the word's place.
    tag: u16,
    /// If known: the time of the last success. Else the latest slot given, or the last failure if later; ms.
    last: u64,
}

/// When a connection may proceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Turn {
    /// At once.
    #[default]
    Now,
    /// After this delay, ms.
    In(u64),
    /// Refused: the delay would exceed [`WAIT_MAX_MS`].
    Never,
}

impl Stranger {
    /// Returns the history of a source of which nothing is recorded.
    pub fn new(tag: u16) -> Self {
        Self {
            tag,
            ..Self::default()
        }
    }

    /// Unpacks the history of the source with this tag; a word with another tag has none.
    pub fn of(word: u64, tag: u16) -> Self {
        let it = Self::unpack(word);
        if it.tag == tag { it } else { Self::new(tag) }
    }

    /// Returns which of these words has the history of the source with this tag.
    pub fn find(words: &[u64], tag: u16) -> Option<usize> {
        words.iter().position(|word| Self::unpack(*word).tag == tag)
    }

    /// Returns which of these words a new source takes over: one that is forgotten, else that of the oldest failure,
    /// else that of the oldest success.
    pub fn least(words: &[u64], now: u64) -> Option<usize> {
        let worth = |word: u64| {
            let it = Self::unpack(word).at(now);
            (it.known, it.refusals > 0, it.last)
        };
        (0..words.len()).min_by_key(|place| words.get(*place).map(|word| worth(*word)))
    }

    /// Unpacks a history from a word.
    pub fn unpack(word: u64) -> Self {
        let refusals = word >> COUNT_SHIFT & u64::from(COUNT_MAX);
        let tag = word >> TAG_SHIFT & u64::from(u16::MAX);
        Self {
            known: word & KNOWN != 0,
            refusals: u8::try_from(refusals).unwrap_or(COUNT_MAX),
            tag: u16::try_from(tag).unwrap_or(u16::MAX),
            last: word & TIME,
        }
    }

    /// Packs the history into a word.
    pub fn pack(self) -> u64 {
        let known = if self.known { KNOWN } else { 0 };
        let tag = u64::from(self.tag) << TAG_SHIFT;
        let refusals = u64::from(self.refusals.min(COUNT_MAX)) << COUNT_SHIFT;
        known | refusals | tag | self.last.min(TIME)
    }

    fn at(self, now: u64) -> Self {
        let holds = if self.known { KNOWN_MS } else { FORGET_MS };
        if now.saturating_sub(self.last) < holds {
            return self;
        }
        Self {
            known: false,
            refusals: 0,
            ..self
        }
    }

    /// Records a failed authentication at time `now`.
    #[must_use]
    pub fn refused(self, now: u64) -> Self {
        let it = self.at(now);
        if it.known {
            return it;
        }
        Self {
            refusals: it.refusals.saturating_add(1).min(COUNT_MAX),
            last: it.last.max(now),
            ..it
        }
    }

    /// Records a successful authentication at time `now`.
    #[must_use]
    pub fn known(self, now: u64) -> Self {
        Self {
            known: true,
            refusals: 0,
            last: now,
            ..self
        }
    }

    /// Schedules a connection that arrives at time `now`.
    #[must_use]
    pub fn comes(self, now: u64) -> (Self, Turn) {
        let it = self.at(now);
        let Some(above) = it.refusals.checked_sub(FREE + 1).filter(|_| !it.known) else {
            return (self, Turn::Now);
        };
        let turn = FIRST_MS
            .checked_shl(u32::from(above.min(16)))
            .unwrap_or(TURN_MAX_MS);
        let next = it.last.max(now).saturating_add(turn.min(TURN_MAX_MS));
        let wait = next.saturating_sub(now);
        if wait > WAIT_MAX_MS {
            return (it, Turn::Never);
        }
        (Self { last: next, ..it }, Turn::In(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(times: u8, now: u64) -> Stranger {
        (0..times).fold(Stranger::default(), |it, _| it.refused(now))
    }

    #[test]
    fn the_first_refusals_cost_nothing_and_the_others_ever_more() {
        assert_eq!(
            Stranger::default().comes(5),
            (Stranger::default(), Turn::Now)
        );
        assert_eq!(refused(FREE, 5).comes(5).1, Turn::Now);
        let waits =
            [1, 2, 3, 5, 6, 100, 255].map(|more| refused(FREE.saturating_add(more), 5).comes(5).1);
        assert_eq!(waits, [100, 200, 400, 1600, 2000, 2000, 2000].map(Turn::In));
    }

    #[test]
    fn connections_at_the_same_time_take_turns_until_there_are_too_many() {
        let mut it = refused(FREE + 10, 0);
        let mut turns = [Turn::Now; 7];
        for turn in &mut turns {
            (it, *turn) = it.comes(0);
        }
        let waits = [2000, 4000, 6000, 8000, 10_000].map(Turn::In);
        assert_eq!(turns[..5], waits);
        assert_eq!(turns[5..], [Turn::Never; 2]);
        assert_eq!(
            it.comes(4000).1,
            Turn::In(8000),
            "those without a turn took none"
        );
    }

    #[test]
    fn who_is_known_does_not_wait_whatever_others_do_in_its_name_until_an_hour_is_over() {
        let it = refused(20, 0).known(0);
        assert_eq!(it.comes(0).1, Turn::Now);
        let again = (0..200).fold(it, |it, _| it.refused(1));
        let again = Stranger::unpack(again.pack());
        assert_eq!(again.comes(KNOWN_MS - 1).1, Turn::Now);
        let later = (0..20).fold(again, |it, _| it.refused(KNOWN_MS));
        assert_eq!(later.comes(KNOWN_MS).1, Turn::In(2000));
        let proved_again = again.known(KNOWN_MS - 1).refused(KNOWN_MS);
        assert_eq!(proved_again.refusals, 0, "counted from the last proof");
    }

    #[test]
    fn refusals_are_forgotten_after_a_while() {
        let it = refused(20, 1000);
        assert_ne!(it.comes(1000 + FORGET_MS - 1).1, Turn::Now);
        assert_eq!(it.comes(1000 + FORGET_MS).1, Turn::Now);
        assert_eq!(it.refused(1000 + FORGET_MS).refusals, 1);
    }

    #[test]
    fn another_source_takes_over_what_is_worth_least() {
        let of = |tag: u16| Stranger::new(tag);
        let forgotten = of(1).refused(0).pack();
        let old = of(2).refused(FORGET_MS).pack();
        let new = of(3).refused(FORGET_MS + 1).pack();
        let known = of(4).known(0).pack();
        let later = of(5).known(1).pack();
        let least = |words: &[u64]| Stranger::least(words, FORGET_MS + 2);
        assert_eq!(least(&[known, new, old, forgotten]), Some(3));
        assert_eq!(least(&[known, new, old, later]), Some(2));
        assert_eq!(least(&[later, known, new]), Some(2));
        assert_eq!(least(&[later, known]), Some(1));
        assert_eq!(Stranger::find(&[known, old], 2), Some(1));
        assert_eq!(Stranger::find(&[known, old], 3), None);
        assert_eq!(Stranger::of(old, 3), Stranger::new(3));
        assert_eq!(Stranger::of(old, 2).refusals, 1);
    }

    proptest! {
        #[test]
        fn a_word_is_somebody(word: u64) {
            prop_assert_eq!(Stranger::unpack(word).pack(), word);
        }

        #[test]
        fn no_wait_is_longer_than_the_longest(word: u64, now in 0..TIME) {
            let it = Stranger::unpack(word);
            let (_, turn) = it.comes(now);
            if let Turn::In(wait) = turn {
                prop_assert!(wait > 0 && wait <= WAIT_MAX_MS);
            }
            prop_assert!(turn == Turn::Now || !it.at(now).known);
            let refused = Stranger::unpack(it.refused(now).pack());
            prop_assert!(refused.known || refused.refusals > 0);
            prop_assert_eq!(it.known(now).comes(now).1, Turn::Now);
        }
    }
}
