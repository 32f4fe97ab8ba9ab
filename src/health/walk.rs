//! How a look goes through the objects of a kind: a slice each time, so that a look costs the same however many
//! there are; all at once when SPDK has told that a bdev has gone.
//!
//! ```text
//!   look     1         2         3         4
//!   objects  0..256    256..512  512..600  0..256
//!                                   a bdev goes: look 4 has 0..600
//! ```

use spdk::bdev;

use crate::resource::{Key, Slice};

/// How many objects a look has, unless a bdev has gone.
const SLICE: usize = 256;

/// Where the next look begins.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    after: Option<Key>,
    /// Watched bdevs that had gone at the last look.
    losses: u64,
}

impl Walk {
    /// The slice of this look; all if a watched bdev has gone since the last.
    pub(crate) fn slice(&mut self) -> Slice {
        self.slice_after(bdev::losses())
    }

    /// The slice of this look, also if bdevs have gone.
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

    /// Takes note after which key there is more.
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
