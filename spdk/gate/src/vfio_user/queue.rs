//! Validates queues that a guest creates.

use super::is_page;

/// Bytes of the largest queue: 65,536 commands of 64 bytes.
pub const QUEUE_BYTES_MAX: u64 = 65_536 * 64;

/// Returns whether a queue of `entries` entries of `entry_size` bytes may be at this guest address: page-aligned,
/// and without overflowing the address space.
pub fn is_queue_right(addr: u64, entries: u64, entry_size: u64) -> bool {
    let Some(bytes) = entries.checked_mul(entry_size) else {
        return false;
    };
    let ends = addr.checked_add(bytes).is_some();
    is_page(addr) && bytes > 0 && bytes <= QUEUE_BYTES_MAX && ends
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queues_begin_with_a_page_and_end_before_the_last_address() {
        assert!(is_queue_right(0, 2, 16));
        assert!(is_queue_right(0x1000, 65_536, 64));
        for (addr, entries, size) in [
            (0x1001, 2, 16),
            (0x1800, 2, 16),
            (0x1000, 0, 64),
            (0x1000, 65_537, 64),
            (0x1000, u64::MAX, 64),
            (u64::MAX - 0xfff, 64, 64),
            (u64::MAX - 0xfff, 65_536, 64),
        ] {
            assert!(!is_queue_right(addr, entries, size), "{addr:#x} {entries}");
        }
    }

    proptest! {
        #[test]
        fn what_is_right_does_not_wrap(addr in any::<u64>(), entries in any::<u64>(), size in 0_u64..100) {
            let addr = addr & !0xfff;
            if is_queue_right(addr, entries, size) {
                let end = u128::from(addr) + u128::from(entries) * u128::from(size);
                prop_assert!(end <= u128::from(u64::MAX));
            }
        }
    }
}
