//! What is known of an address from which hosts connect: how often they were refused, and whether one of them
//! has proved who it is. Whoever is refused again and again waits for its turn; an address with a host that is
//! known never does.

/// Refusals that nobody waits for: keys and names are mistyped.
pub const FREE: u8 = 8;

/// The wait for a turn after the first refusal that is not free, ms. It doubles with each.
pub const FIRST_MS: u64 = 100;

/// The longest wait for a turn, ms.
pub const TURN_MAX_MS: u64 = 2_000;

/// The longest wait for all turns before it, ms: as long as a connection may take to be admitted.
pub const WAIT_MAX_MS: u64 = 10_000;

/// Time without a refusal or a turn after which refusals are forgotten, ms.
pub const FORGET_MS: u64 = 60_000;

const KNOWN: u64 = 1 << 63;
const COUNT_SHIFT: u32 = 56;
const COUNT_MAX: u8 = 0x7f;
const TIME: u64 = (1 << COUNT_SHIFT) - 1;

/// An address, as it is kept in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Address {
    known: bool,
    refusals: u8,
    /// The turn that was given last, or the last refusal, ms.
    last: u64,
}

impl Address {
    /// Out of a word.
    pub fn unpack(word: u64) -> Self {
        let refusals = word >> COUNT_SHIFT & u64::from(COUNT_MAX);
        Self {
            known: word & KNOWN != 0,
            refusals: u8::try_from(refusals).unwrap_or(COUNT_MAX),
            last: word & TIME,
        }
    }

    /// Into a word.
    pub fn pack(self) -> u64 {
        let known = if self.known { KNOWN } else { 0 };
        known | u64::from(self.refusals.min(COUNT_MAX)) << COUNT_SHIFT | self.last.min(TIME)
    }

    fn at(self, now: u64) -> Self {
        if now.saturating_sub(self.last) < FORGET_MS {
            return self;
        }
        Self {
            refusals: 0,
            ..self
        }
    }

    /// A host was refused `now`.
    #[must_use]
    pub fn refused(self, now: u64) -> Self {
        let it = self.at(now);
        Self {
            refusals: it.refusals.saturating_add(1).min(COUNT_MAX),
            last: it.last.max(now),
            ..it
        }
    }

    /// A host has proved who it is.
    #[must_use]
    pub fn known(self) -> Self {
        Self {
            known: true,
            refusals: 0,
            ..self
        }
    }

    /// How long a connection that comes `now` waits for its turn, ms.
    #[must_use]
    pub fn comes(self, now: u64) -> (Self, u64) {
        let it = self.at(now);
        let Some(above) = it.refusals.checked_sub(FREE + 1).filter(|_| !it.known) else {
            return (self, 0);
        };
        let turn = FIRST_MS
            .checked_shl(u32::from(above.min(16)))
            .unwrap_or(TURN_MAX_MS);
        let next = it.last.max(now).saturating_add(turn.min(TURN_MAX_MS));
        let wait = next.saturating_sub(now);
        if wait > WAIT_MAX_MS {
            // It will have been closed by then.
            return (it, WAIT_MAX_MS);
        }
        (Self { last: next, ..it }, wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(times: u8, now: u64) -> Address {
        (0..times).fold(Address::default(), |it, _| it.refused(now))
    }

    #[test]
    fn the_first_refusals_cost_nothing_and_the_others_ever_more() {
        assert_eq!(Address::default().comes(5), (Address::default(), 0));
        assert_eq!(refused(FREE, 5).comes(5).1, 0);
        let waits =
            [1, 2, 3, 5, 6, 100, 255].map(|more| refused(FREE.saturating_add(more), 5).comes(5).1);
        assert_eq!(waits, [100, 200, 400, 1600, 2000, 2000, 2000]);
    }

    #[test]
    fn connections_at_the_same_time_take_turns_until_there_are_too_many() {
        let mut address = refused(FREE + 10, 0);
        let mut waits = [0; 7];
        for wait in &mut waits {
            (address, *wait) = address.comes(0);
        }
        assert_eq!(waits, [2000, 4000, 6000, 8000, 10_000, 10_000, 10_000]);
        assert_eq!(
            address.comes(4000).1,
            8000,
            "those that were closed took no turn"
        );
    }

    #[test]
    fn who_is_known_never_waits_whatever_others_do_there() {
        let address = refused(20, 0).known();
        assert_eq!(address.comes(0).1, 0);
        let again = (0..200).fold(address, |it, _| it.refused(1));
        assert_eq!(Address::unpack(again.pack()).comes(1).1, 0);
    }

    #[test]
    fn refusals_are_forgotten_after_a_while() {
        let address = refused(20, 1000);
        assert!(address.comes(1000 + FORGET_MS - 1).1 > 0);
        assert_eq!(address.comes(1000 + FORGET_MS).1, 0);
        assert_eq!(address.refused(1000 + FORGET_MS).refusals, 1);
    }

    proptest! {
        #[test]
        fn a_word_is_an_address(word: u64) {
            prop_assert_eq!(Address::unpack(word).pack(), word);
        }

        #[test]
        fn no_wait_is_longer_than_the_longest(word: u64, now: u64) {
            let address = Address::unpack(word);
            let (next, wait) = address.comes(now);
            prop_assert!(wait <= WAIT_MAX_MS);
            prop_assert!(wait == 0 || !address.known);
            prop_assert_eq!(Address::unpack(next.pack()).known, address.known);
            let refused = Address::unpack(address.refused(now).pack());
            prop_assert_eq!(refused.known, address.known);
            prop_assert!(refused.refusals > 0);
        }
    }
}
