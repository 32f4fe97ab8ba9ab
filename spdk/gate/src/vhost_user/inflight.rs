//! The inflight area: a file of the client in which requests that were taken and not yet completed are
//! noted, so that the next process of ours takes them again (vhost-user, "Inflight I/O tracking").

use super::{Fault, MAX_RING_SIZE, MAX_RINGS, u16_at, u64_at};

/// Bytes of a region's head.
pub const HEAD: usize = 16;

/// Bytes of an entry.
pub const ENTRY: usize = 16;

/// Regions begin at multiples of this.
const ALIGN: u64 = 64;

/// The version of the layout.
pub const VERSION: u16 = 1;

/// What GET_INFLIGHT_FD asks for and SET_INFLIGHT_FD brings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Area {
    /// Bytes of the area.
    pub size: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// Regions.
    pub queues: u16,
    /// Entries of each.
    pub entries: u16,
}

impl Area {
    /// From a message.
    pub(super) fn parse(payload: &[u8]) -> Self {
        Self {
            size: u64_at(payload, 0),
            offset: u64_at(payload, 8),
            queues: u16_at(payload, 16),
            entries: u16_at(payload, 18),
        }
    }

    /// As in a message.
    pub fn bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let fields: [&[u8]; 4] = [
            &self.size.to_le_bytes(),
            &self.offset.to_le_bytes(),
            &self.queues.to_le_bytes(),
            &self.entries.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// Bytes of one region.
    pub fn stride(&self) -> u64 {
        let entries = u64::from(self.entries).saturating_mul(ENTRY as u64);
        entries.saturating_add(HEAD as u64).next_multiple_of(ALIGN)
    }

    /// Bytes that all regions need.
    pub fn needed(&self) -> u64 {
        self.stride().saturating_mul(self.queues.into())
    }

    /// Whether an area of these numbers can be, in either message.
    ///
    /// # Errors
    /// None or too many queues, none or too many entries.
    pub fn check(&self) -> Result<(), Fault> {
        if self.queues == 0 || usize::from(self.queues) > MAX_RINGS {
            return Err(Fault::new(
                "an inflight area must have 1 to 128 queues",
                self.queues.into(),
            ));
        }
        if self.entries == 0 || self.entries > MAX_RING_SIZE {
            return Err(Fault::new(
                "an inflight area must have 1 to 1024 entries a queue",
                self.entries.into(),
            ));
        }
        Ok(())
    }

    /// Whether one that a client brings is as large as its regions.
    ///
    /// # Errors
    /// As [`check`](Self::check), and a size that is too small or more than twice as large.
    pub fn check_given(&self) -> Result<(), Fault> {
        self.check()?;
        let needed = self.needed();
        if self.size < needed || self.size > needed.saturating_mul(2).saturating_add(1 << 21) {
            return Err(Fault::new(
                "an inflight area's size must be that of its queues",
                self.size,
            ));
        }
        Ok(())
    }

    /// Where the region of a queue begins in the area, if it has one for a ring of this size.
    pub fn region(&self, queue: u16, size: u16) -> Option<u64> {
        let fits = queue < self.queues && size <= self.entries;
        fits.then(|| self.stride().saturating_mul(queue.into()))
    }
}

/// What a region says when a ring starts, after its last batch was settled: see [`pending`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// Its head was taken and not completed.
    pub inflight: bool,
    /// Order in which heads were taken.
    pub counter: u64,
}

/// Heads to take again, in the order in which they were taken, written to `heads`; how many. `noted`
/// yields the entries of a region; more of them than `heads` has room for are not looked at.
pub fn pending(noted: impl Iterator<Item = Noted>, heads: &mut [(u64, u16)]) -> usize {
    let mut count = 0_usize;
    for (head, entry) in (0_u16..).zip(noted).take(heads.len()) {
        if !entry.inflight {
            continue;
        }
        if let Some(slot) = heads.get_mut(count) {
            *slot = (entry.counter, head);
            count = count.saturating_add(1);
        }
    }
    if let Some(found) = heads.get_mut(..count) {
        found.sort_unstable();
    }
    count
}
