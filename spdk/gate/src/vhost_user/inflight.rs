//! The inflight area: a file of the client that records requests taken and not yet completed, so that they are
//! resubmitted after a restart of this process (vhost-user, "Inflight I/O tracking").

use super::{Fault, MAX_RING_SIZE, MAX_RINGS, u16_at, u64_at};

/// Bytes of a region's header.
pub const HEAD: usize = 16;

/// Bytes of an entry.
pub const ENTRY: usize = 16;

/// Alignment of regions, in bytes.
const ALIGN: u64 = 64;

/// The version of the layout.
pub const VERSION: u16 = 1;

/// The parameters of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Area {
    /// Size of the area in bytes.
    pub size: u64,
    /// Offset in its file.
    pub offset: u64,
    /// Number of regions, one per queue.
    pub queues: u16,
    /// Entries per region.
    pub entries: u16,
}

impl Area {
    /// Decodes a message payload.
    pub(super) fn parse(payload: &[u8]) -> Self {
        Self {
            size: u64_at(payload, 0),
            offset: u64_at(payload, 8),
            queues: u16_at(payload, 16),
            entries: u16_at(payload, 18),
        }
    }

    /// Encodes a message payload.
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

    /// Returns the size of one region, in bytes.
    pub fn stride(&self) -> u64 {
        let entries = u64::from(self.entries).saturating_mul(ENTRY as u64);
        entries.saturating_add(HEAD as u64).next_multiple_of(ALIGN)
    }

    /// Returns the bytes that all regions need.
    pub fn needed(&self) -> u64 {
        self.stride().saturating_mul(self.queues.into())
    }

    /// Checks the bounds of either message.
    ///
    /// # Errors
    /// No or too many queues, no or too many entries.
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

    /// Checks that an area from a client has the size of its regions.
    ///
    /// # Errors
    /// As [`check`](Self::check), and a size that is too small, or more than about twice as large as needed.
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

    /// Returns the offset of a queue's region in the area, if it has one for a ring of this size.
    pub fn region(&self, queue: u16, size: u16) -> Option<u64> {
        let fits = queue < self.queues && size <= self.entries;
        fits.then(|| self.stride().saturating_mul(queue.into()))
    }
}

/// An entry of a region, read when its ring starts and after its last batch was settled: see [`pending`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// The descriptor head was taken and not completed.
    pub inflight: bool,
    /// Sequence number, in the order in which heads were taken.
    pub counter: u64,
}

/// Writes the heads to resubmit to `heads`, in the order in which they were taken; returns how many. `noted` yields
/// the entries of a region; entries beyond the length of `heads` are ignored.
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
