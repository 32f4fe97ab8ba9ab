//! Backoff of a failing disk: each attempt to write or reopen the database reads the whole file, which clients that
//! retry must not make it do all the time.

use std::time::{Duration, Instant};

use super::Error;

/// Failures in a row after which attempts are spaced: those before follow at once, so that a batch that cannot be
/// written (it does not fit) does not fail the others of its group.
const AT_ONCE: u32 = 4;

/// First delay.
const MIN: Duration = Duration::from_millis(50);

/// Longest delay.
const MAX: Duration = Duration::from_secs(1);

/// Consecutive failures of the disk, and when the next attempt is due.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    last: Option<(Instant, Error)>,
}

impl Backoff {
    /// Notes a failed attempt, which has changed nothing that is durable.
    pub fn failed(&mut self, error: &Error) {
        self.failures = self.failures.saturating_add(1);
        self.last = Some((Instant::now(), error.clone()));
    }

    /// Notes a durable write.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Fails while the next attempt is not due.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub fn check(&self) -> Result<(), Error> {
        match &self.last {
            Some((_, error)) if !self.remaining().is_zero() => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Time until the next attempt is due.
    pub fn remaining(&self) -> Duration {
        let since = self.last.as_ref().map(|(at, _)| at.elapsed());
        since.map_or(Duration::ZERO, |since| {
            delay(self.failures).saturating_sub(since)
        })
    }
}

/// Delay after this many failures in a row.
fn delay(failures: u32) -> Duration {
    match failures.checked_sub(AT_ONCE) {
        None => Duration::ZERO,
        Some(more) => MIN.saturating_mul(1 << more.min(10)).min(MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempts_follow_at_once_and_the_others_at_growing_distances() {
        let delays: Vec<u128> = (0..=10)
            .map(|failures| delay(failures).as_millis())
            .collect();
        assert_eq!(delays, [0, 0, 0, 0, 50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(delay(u32::MAX), MAX);
        let mut backoff = Backoff::default();
        let error = Error::Io("no disk".to_owned());
        for _ in 1..AT_ONCE {
            backoff.failed(&error);
            assert_eq!(backoff.check(), Ok(()));
        }
        for _ in 0..20 {
            backoff.failed(&error);
        }
        assert_eq!(backoff.check(), Err(error));
        assert!(backoff.remaining() > Duration::ZERO);
        backoff.succeeded();
        assert_eq!(backoff.check(), Ok(()));
    }
}
