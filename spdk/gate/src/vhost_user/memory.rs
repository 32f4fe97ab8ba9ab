//! Guest memory as a client describes it: regions of files, addressed by guest-physical addresses (in descriptors)
//! and by the client's virtual addresses (of rings).

use super::{Fault, u32_at, u64_at};

/// The most regions: what QEMU sends without configurable memory slots.
pub const MAX_REGIONS: usize = 8;

/// Bytes of a region in a message.
const REGION_SIZE: usize = 32;

/// The most bytes of all regions of any table. What the machine could hold is less: see
/// [`room`](super::room).
pub const MAX_MEMORY: u64 = 1 << 45;

/// A region, as the client describes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub guest: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in the client.
    pub user: u64,
    /// Offset in its file.
    pub offset: u64,
}

/// A memory table whose regions are valid and do not overlap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Table {
    regions: [Region; MAX_REGIONS],
    count: usize,
}

impl Table {
    /// Returns the regions in the client's order, which is also that of their fds.
    pub fn regions(&self) -> &[Region] {
        self.regions.get(..self.count).unwrap_or_default()
    }

    /// Returns the size of all regions, in bytes.
    pub fn bytes(&self) -> u64 {
        let sizes = self.regions().iter().map(|region| region.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Parses and validates the payload of SET_MEM_TABLE.
    ///
    /// # Errors
    /// A wrong length or count, an empty region, a range that overflows, overlapping regions, too much memory.
    pub fn parse(payload: &[u8]) -> Result<Self, Fault> {
        let count = u32_at(payload, 0);
        let regions = usize::try_from(count).unwrap_or(usize::MAX);
        if regions > MAX_REGIONS {
            return Err(Fault::new(
                "a memory table may have 8 regions",
                count.into(),
            ));
        }
        let expected = regions.saturating_mul(REGION_SIZE).saturating_add(8);
        if payload.len() != expected {
            return Err(Fault::new(
                "a memory table's length must be that of its regions",
                payload.len() as u64,
            ));
        }
        let mut table = Self {
            count: regions,
            ..Self::default()
        };
        let places = payload.get(8..).unwrap_or_default();
        for (region, bytes) in table
            .regions
            .iter_mut()
            .zip(places.chunks_exact(REGION_SIZE))
        {
            *region = Region {
                guest: u64_at(bytes, 0),
                size: u64_at(bytes, 8),
                user: u64_at(bytes, 16),
                offset: u64_at(bytes, 24),
            };
        }
        table.check()?;
        Ok(table)
    }

    fn check(&self) -> Result<(), Fault> {
        let mut sum = 0_u64;
        for (at, region) in self.regions().iter().enumerate() {
            if region.size == 0 {
                return Err(Fault::new("a memory region must not be empty", region.size));
            }
            for start in [region.guest, region.user, region.offset] {
                if start.checked_add(region.size).is_none() {
                    return Err(Fault::new("a memory region must end below 2^64", start));
                }
            }
            sum = sum.saturating_add(region.size);
            if sum > MAX_MEMORY {
                return Err(Fault::new("guest memory may have 2^45 bytes", sum));
            }
            for other in self.regions().iter().take(at) {
                let apart = |a: u64, b: u64| {
                    a.saturating_add(region.size) <= b || b.saturating_add(other.size) <= a
                };
                if !apart(region.guest, other.guest) || !apart(region.user, other.user) {
                    return Err(Fault::new("memory regions must not overlap", region.guest));
                }
            }
        }
        Ok(())
    }
}

/// The part of a file to map for a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Page-aligned offset of the mapping in the file.
    pub offset: u64,
    /// Length of the mapping, in whole pages. Bytes.
    pub length: u64,
    /// Bytes of the mapping before the region.
    pub lead: u64,
}

impl Window {
    /// Computes the mapping for `size` bytes at `offset` of a file of `file` bytes. `page` is the page size, a power
    /// of two.
    ///
    /// # Errors
    /// A range that is empty, overflows, or ends beyond the file: access to a mapping beyond it raises SIGBUS.
    pub fn new(offset: u64, size: u64, file: u64, page: u64) -> Result<Self, Fault> {
        let mask = page.saturating_sub(1);
        let end = offset.checked_add(size).filter(|_| size > 0);
        let end = end.ok_or(Fault::new("a mapped range must not be empty or wrap", size))?;
        if end > file {
            return Err(Fault::new("a mapped range must end within its file", end));
        }
        let begin = offset & !mask;
        let round = end.checked_add(mask).map(|end| end & !mask);
        let length = round.and_then(|end| end.checked_sub(begin));
        let length = length.ok_or(Fault::new("a mapped range must end below 2^64", end))?;
        Ok(Self {
            offset: begin,
            length,
            lead: offset.saturating_sub(begin),
        })
    }
}

/// A region mapped into this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Guest-physical address.
    pub guest: u64,
    /// Address in the client.
    pub user: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in this process.
    pub host: usize,
}

/// Translates the beginning of a guest-physical range to this process, with its contiguous length.
#[inline]
pub fn by_guest(regions: &[Mapped], address: u64, length: u64) -> Option<(usize, u64)> {
    find(regions, address, length, |region| region.guest)
}

/// Translates a whole range of the client's addresses to this process; `None` unless it is contiguous.
pub fn by_user(regions: &[Mapped], address: u64, length: u64) -> Option<usize> {
    let (host, piece) = find(regions, address, length, |region| region.user)?;
    (piece == length).then_some(host)
}

/// Translates an address of this process to a guest-physical address.
pub fn to_guest(regions: &[Mapped], host: usize) -> Option<u64> {
    regions.iter().find_map(|region| {
        let offset = u64::try_from(host.checked_sub(region.host)?).ok()?;
        (offset < region.size).then(|| region.guest.saturating_add(offset))
    })
}

#[inline]
fn find(
    regions: &[Mapped],
    address: u64,
    length: u64,
    start: impl Fn(&Mapped) -> u64,
) -> Option<(usize, u64)> {
    for region in regions {
        let offset = address.wrapping_sub(start(region));
        // An address below the start wraps around to an offset larger than any size.
        if offset < region.size {
            let rest = region.size.saturating_sub(offset);
            let host = region.host.checked_add(usize::try_from(offset).ok()?)?;
            return Some((host, rest.min(length)));
        }
    }
    None
}
