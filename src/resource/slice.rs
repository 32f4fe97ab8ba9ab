//! Slices of a collection: a monitor checks a bounded number of objects at a time, so that the cost of a check
//! does not grow with their number.

use std::ops::Bound;

use super::{Collection, Key, Kind, Name};

/// A range of objects, ordered by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slice {
    /// Start after this key; `None` starts at the first.
    pub after: Option<Key>,
    /// Maximum number of objects.
    pub most: usize,
}

impl Slice {
    /// All objects.
    pub(crate) const ALL: Self = Self {
        after: None,
        most: usize::MAX,
    };
}

impl<K: Kind> Collection<K> {
    /// Returns the objects of a slice, and the key to continue after; `None` at the end.
    pub(crate) fn slice(&self, slice: &Slice) -> (Vec<(Name, K::Object)>, Option<Key>) {
        self.pick(slice, |name, object| Some((name, object.clone())))
    }

    /// Returns the keys of the objects in a slice that SPDK has lost, and the key to continue after; `None` at
    /// the end.
    pub(crate) fn lost(&self, slice: &Slice) -> (Vec<Key>, Option<Key>) {
        self.pick(slice, |name, object| {
            let is_lost = self.kind.is_lost(&name, object);
            is_lost.then(|| name.key().clone())
        })
    }

    /// `pick` runs under the lock of the records and must not acquire it again.
    fn pick<T>(
        &self,
        slice: &Slice,
        mut pick: impl FnMut(Name, &K::Object) -> Option<T>,
    ) -> (Vec<T>, Option<Key>) {
        let from = match &slice.after {
            Some(last) => Bound::Excluded(last.as_str()),
            None => Bound::Unbounded,
        };
        let (mut picked, mut last) = (Vec::new(), None);
        let records = self.records.read();
        let rest = records.range::<str, _>((from, Bound::Unbounded));
        for (number, (key, record)) in rest.enumerate() {
            if number >= slice.most {
                return (picked, last);
            }
            if let Ok(name) = self.meta.parse("name", key.as_str()) {
                picked.extend(pick(name, &record.object));
            }
            last = Some(key.clone());
        }
        (picked, None)
    }
}
