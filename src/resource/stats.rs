//! Conversion of SPDK's u64 counters to the API's int32.

/// Converts a counter, saturating at the maximum: never wraps, never negative.
pub fn saturate(counter: u64) -> i32 {
    i32::try_from(counter).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_stops_at_the_largest_int32() {
        assert_eq!(saturate(0), 0);
        assert_eq!(saturate(i32::MAX as u64), i32::MAX);
        assert_eq!(saturate(i32::MAX as u64 + 1), i32::MAX);
        assert_eq!(saturate(u64::MAX), i32::MAX);
    }
}
