//! Validates memory that a client shares (VFIO_USER_DMA_MAP).

use super::{PAGE, is_page};

/// The most guest memory of one client, in bytes. Mappings use address space of the process, which all clients
/// share.
pub const MEMORY_MAX: u64 = 2 << 40;

/// A region to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest address.
    pub addr: u64,
    /// Size in bytes.
    pub size: u64,
    /// Offset in its file.
    pub offset: u64,
    /// Size of the file in bytes; `None` for memory without a file, which is never mapped.
    pub file_size: Option<u64>,
    /// Bytes that the client has shared already.
    pub mapped: u64,
    /// The client grants read access.
    pub is_readable: bool,
}

/// Returns whether the region may be shared: whole pages that end within the guest's address space and the file.
pub fn is_region_right(region: &Region) -> bool {
    let Region {
        addr,
        size,
        offset,
        file_size,
        mapped,
        is_readable,
    } = *region;
    let is_whole = size >= PAGE && is_page(addr) && is_page(size);
    let ends = addr.checked_add(size).is_some();
    let fits = mapped
        .checked_add(size)
        .is_some_and(|sum| sum <= MEMORY_MAX);
    let in_file = match file_size {
        None => true,
        Some(length) => {
            let end = offset.checked_add(size);
            is_readable && is_page(offset) && end.is_some_and(|end| end <= length)
        }
    };
    is_whole && ends && fits && in_file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RIGHT: Region = Region {
        addr: 0x10_0000,
        size: 0x20_0000,
        offset: 0,
        file_size: Some(0x20_0000),
        mapped: 0,
        is_readable: true,
    };

    #[test]
    fn whole_pages_inside_the_file_are_right() {
        assert!(is_region_right(&RIGHT));
        let without_file = Region {
            file_size: None,
            is_readable: false,
            ..RIGHT
        };
        assert!(is_region_right(&without_file));
        // QEMU maps parts of one hugepage file.
        let part = Region {
            addr: 0xc0000,
            size: 0x4000_0000 - 0xc0000,
            offset: 0xc0000,
            file_size: Some(0x4000_0000),
            ..RIGHT
        };
        assert!(is_region_right(&part));
    }

    #[test]
    fn each_rule_is_kept() {
        let wrong = [
            Region { size: 0, ..RIGHT },
            Region { size: 1, ..RIGHT },
            Region { addr: 1, ..RIGHT },
            Region {
                size: 0x1001,
                ..RIGHT
            },
            Region {
                offset: 0x800,
                file_size: Some(1 << 30),
                ..RIGHT
            },
            Region {
                offset: PAGE,
                ..RIGHT
            },
            Region {
                file_size: Some(0),
                ..RIGHT
            },
            Region {
                file_size: Some(0x1f_ffff),
                ..RIGHT
            },
            Region {
                is_readable: false,
                ..RIGHT
            },
            Region {
                addr: u64::MAX - 0x1f_ffff,
                ..RIGHT
            },
            Region {
                offset: u64::MAX - 0xfff,
                ..RIGHT
            },
            Region {
                mapped: MEMORY_MAX,
                ..RIGHT
            },
            Region {
                mapped: u64::MAX,
                ..RIGHT
            },
        ];
        for region in wrong {
            assert!(!is_region_right(&region), "{region:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_right_is_inside_its_bounds(
            addr in any::<u64>(), pages in any::<u64>(), offset in any::<u64>(), file in any::<u64>(),
            align in any::<bool>(),
        ) {
            let round = |value: u64| if align { value & !(PAGE - 1) } else { value };
            let region = Region {
                addr: round(addr), size: round(pages), offset: round(offset), file_size: Some(file), ..RIGHT
            };
            if is_region_right(&region) {
                let end = u128::from(region.addr) + u128::from(region.size);
                prop_assert!(end <= u128::from(u64::MAX));
                let end = u128::from(region.offset) + u128::from(region.size);
                prop_assert!(end <= u128::from(file));
                prop_assert!(region.size > 0 && region.size <= MEMORY_MAX);
                prop_assert!(is_page(region.addr) && is_page(region.offset) && is_page(region.size));
            }
        }
    }
}
