//! Parses the parameter list of UNMAP (SBC-3, 5.28).

use super::{Geometry, Sense, be_at};

/// The most ranges of one list.
pub const MAX_RANGES: usize = 16;

/// The most bytes of a list.
pub const PARAMETERS: usize = 8 + 16 * MAX_RANGES;

/// Non-empty ranges in bytes, within the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ranges {
    places: [(u64, u64); MAX_RANGES],
    count: usize,
}

impl Ranges {
    /// Removes and returns the last range.
    pub fn take(&mut self) -> Option<(u64, u64)> {
        self.count = self.count.checked_sub(1)?;
        self.places.get(self.count).copied()
    }
}

/// Parses the ranges of a parameter list.
///
/// # Errors
/// The sense data to respond with.
pub fn unmap_ranges(list: &[u8], disk: &Geometry) -> Result<Ranges, Sense> {
    let mut ranges = Ranges::default();
    if list.len() < 8 {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let length = usize::try_from(be_at(list, 2, 2)).unwrap_or(usize::MAX);
    let end = length.saturating_add(8);
    let Some(descriptors) = list.get(8..end) else {
        return Err(Sense::PARAMETER_LENGTH);
    };
    if !length.is_multiple_of(16) {
        return Err(Sense::INVALID_PARAMETER);
    }
    for descriptor in descriptors.chunks_exact(16) {
        let (offset, length) = disk.range(be_at(descriptor, 0, 8), be_at(descriptor, 8, 4))?;
        if length == 0 {
            continue;
        }
        let place = ranges.places.get_mut(ranges.count);
        *place.ok_or(Sense::INVALID_PARAMETER)? = (offset, length);
        ranges.count = ranges.count.saturating_add(1);
    }
    Ok(ranges)
}
