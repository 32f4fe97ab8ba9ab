//! Some of the objects of a kind: what watches all of them goes through them a slice at a time, so that its cost
//! does not grow with their number.

use std::ops::Bound;

use super::{Collection, Key, Kind, Name};

/// Which objects, in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slice {
    /// Those after this key; from the first on if there is none.
    pub after: Option<Key>,
    /// How many at most.
    pub most: usize,
}

impl Slice {
    /// All there are.
    pub(crate) const ALL: Self = Self {
        after: None,
        most: usize::MAX,
    };
}

impl<K: Kind> Collection<K> {
    /// The objects of a slice, and after which key there are more, if there are.
    pub(crate) fn slice(&self, slice: &Slice) -> (Vec<(Name, K::Object)>, Option<Key>) {
        self.pick(slice, |name, object| Some((name, object.clone())))
    }

    /// The keys of those of a slice that SPDK has lost, and after which key there are more objects, if there are.
    pub(crate) fn lost(&self, slice: &Slice) -> (Vec<Key>, Option<Key>) {
        self.pick(slice, |name, object| {
            let is_lost = self.kind.is_lost(&name, object);
            is_lost.then(|| name.key().clone())
        })
    }

    /// `pick` runs under the lock of the records, and must not take it again.
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
