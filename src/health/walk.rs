//! Slices of the objects of a kind for periodic checks: one slice per check, so that its cost does not grow with the
//! number of objects; all objects after SPDK has removed a watched bdev.
//!
//! ```text
//!   check    1         2         3         4
//!   objects  0..256    256..512  512..600  0..256
//!                                   a bdev is removed: check 4 has 0..600
//! ```

use spdk::bdev;

use crate::resource::{Key, Slice};

/// Objects per check, unless a bdev was removed.
const SLICE: usize = 256;

/// Where the next check begins.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    after: Option<Key>,
    /// Count of removed watched bdevs at the last check.
    losses: u64,
}

impl Walk {
    /// Returns the slice of this check; all objects if a watched bdev was removed since the last one.
    pub(crate) fn slice(&mut self) -> Slice {
        self.slice_after(bdev::losses())
    }

    /// Returns the slice of this check, regardless of removed bdevs.
    pub(crate) fn next(&mut self) -> Slice {
        self.slice_after(self.losses)
    }

    fn slice_after(&mut self, losses: u64) -> Slice {
        if std::mem::replace(&mut self.losses, losses) != losses {
            self.after = None;
            return Slice::ALL;
        }
        Slice {
            after: self.after.take(),
            most: SLICE,
        }
    }

    /// Sets the key after which the next slice begins; `None` starts over.
    pub(crate) fn go_on(&mut self, after: Option<Key>) {
        self.after = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_goes_slice_by_slice_and_has_all_once_a_bdev_has_gone() {
        let mut walk = Walk::default();
        let slice = |after: Option<&str>| Slice {
            after: after.map(Key::from),
            most: SLICE,
        };
        assert_eq!(walk.slice_after(0), slice(None));
        walk.go_on(Some("k/b".into()));
        assert_eq!(walk.slice_after(0), slice(Some("k/b")));
        walk.go_on(Some("k/c".into()));
        assert_eq!(walk.slice_after(1), Slice::ALL);
        assert_eq!(walk.slice_after(1), slice(None), "it began anew");
    }
}
