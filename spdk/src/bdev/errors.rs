//! I/O that devices completed with an error. Errors caused by hosts do not count: aborts, failed fused commands,
//! miscompares, reservation conflicts.

use spdk_sys as sys;

use super::survey::Open;
use crate::app_thread::Spdk;
use spdk_control::executor::yield_now;

/// Number of bdevs read per step.
const AT_ONCE: usize = 64;

/// I/Os of a bdev that its device failed, by type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoErrors {
    /// Reads.
    pub read: u64,
    /// Writes, including write-zeroes.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// All others, such as unmaps and resets.
    pub other: u64,
}

impl IoErrors {
    pub(super) fn of(errors: &sys::opi_bdev_errors) -> Self {
        Self {
            read: errors.read,
            write: errors.write,
            flush: errors.flush,
            other: errors.other,
        }
    }

    /// Returns the sum of all types.
    pub fn all(&self) -> u64 {
        let Self {
            read,
            write,
            flush,
            other,
        } = self;
        read.saturating_add(*write)
            .saturating_add(*flush)
            .saturating_add(*other)
    }

    /// Returns the errors since `before`; all of them if the counters were reset in between.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let difference = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            read: difference(self.read, before.read),
            write: difference(self.write, before.write),
            flush: difference(self.flush, before.flush),
            other: difference(self.other, before.other),
        }
    }
}

/// Returns the total of all bdevs since the start. Any thread; does not involve the reactors.
pub fn device_errors() -> u64 {
    // SAFETY: reads one integer with static lifetime, atomically.
    unsafe { sys::opi_bdev_device_errors() }
}

/// Returns the bdevs with device errors, and their counts by type.
pub async fn failed(spdk: Spdk) -> Vec<(String, IoErrors)> {
    let mut found = Vec::new();
    let mut open = Open::next(spdk, None);
    let mut read = 0_usize;
    while let Some(bdev) = open {
        let errors = bdev.errors();
        if errors.all() > 0 {
            found.push((bdev.name(), errors));
        }
        read = read.wrapping_add(1);
        if read.is_multiple_of(AT_ONCE) {
            yield_now().await;
        }
        open = Open::next(spdk, Some(&bdev));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_since_are_the_difference_or_all_after_a_new_begin() {
        let errors = |read, write| IoErrors {
            read,
            write,
            ..IoErrors::default()
        };
        assert_eq!(errors(7, 2).since(&errors(4, 2)), errors(3, 0));
        assert_eq!(errors(1, 2).since(&errors(4, 0)), errors(1, 2));
        assert_eq!(errors(u64::MAX, 1).all(), u64::MAX);
    }
}
