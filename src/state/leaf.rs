//! Records in one page of redb, read without redb: a walk of a tree with a damaged pointer may have redb allocate 4 GiB
//! for the page before it notices. Layout: redb's `docs/design.md`, leaf pages with keys and values of variable width.

use super::format;
use super::seal::Sealer;

/// First byte of a leaf.
const LEAF: u8 = 1;

/// Bytes before the ends of the keys: the type, padding, and the number of pairs.
const HEADER: usize = 4;

/// Returns the damaged records of a page; none where it is no leaf of records, or its header is damaged.
pub(super) fn damaged_records(page: &[u8], sealer: &Sealer) -> Vec<String> {
    let pairs = pairs(page).unwrap_or_default();
    let records = pairs.into_iter().filter_map(|(key, sealed)| {
        let key = std::str::from_utf8(key).ok()?;
        // Each record's key is a name with a slash; keys of the other tables have none.
        let is_record = key.contains('/') && !key.contains(char::is_control);
        is_record.then_some((key, sealed))
    });
    let damaged = records.filter(|(key, sealed)| format::open(sealer, key, sealed).is_none());
    damaged
        .map(|(key, _)| format!("{key}: it is not what was sealed"))
        .collect()
}

fn pairs(page: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let (&[kind, _, low, high], _) = page.split_first_chunk::<HEADER>()?;
    if kind != LEAF {
        return None;
    }
    let count = usize::from(u16::from_le_bytes([low, high]));
    let end = |at: usize| {
        let at = HEADER + at * size_of::<u32>();
        let end = page.get(at..at + size_of::<u32>())?;
        usize::try_from(u32::from_le_bytes(end.try_into().ok()?)).ok()
    };
    let ends: Vec<usize> = (0..2 * count).map(end).collect::<Option<_>>()?;
    // The values follow the keys.
    let starts = std::iter::once(HEADER + ends.len() * size_of::<u32>()).chain(ends.clone());
    let parts: Vec<&[u8]> = (starts.zip(&ends))
        .map(|(start, end)| page.get(start..*end).unwrap_or_default())
        .collect();
    let (keys, values) = parts.split_at(count);
    Some(keys.iter().copied().zip(values.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateKey;

    #[test]
    fn any_page_is_read_within_its_bytes() {
        let sealer = Sealer::new(&StateKey::from([5; 32]));
        for byte in [0, 1, 2, 0x7f, 0xff] {
            for length in [0, 3, 4, 5, 4096] {
                let mut page = vec![byte; length];
                if let Some(kind) = page.first_mut() {
                    *kind = LEAF;
                }
                assert_eq!(damaged_records(&page, &sealer), [""; 0], "{byte} {length}");
            }
        }
    }
}
