//! Descriptor chains of split rings. Each descriptor is read once, validated, and translated to segments of this
//! process's memory, so a guest that modifies descriptors afterwards has no effect (no double fetch).

use super::Fault;

/// The most segments of a chain: 126 of data, the header, the status, and one more for a descriptor that crosses
/// from one memory region into the next.
pub const MAX_SEGMENTS: usize = 129;

/// The most descriptors of an indirect table that are read. Drivers may use more than the ring has.
const MAX_INDIRECT: u32 = 256;

/// The most segments reserved for a response.
pub const MAX_RESERVED: usize = 4;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub const DESCRIPTOR_SIZE: u64 = 16;

/// A piece of this process's memory, in the layout of C's `struct iovec`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Address in this process.
    pub base: usize,
    /// Length in bytes.
    pub len: usize,
}

/// A descriptor, as copied from the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// The flags NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// Index of the next descriptor of the chain.
    pub next: u16,
}

impl Descriptor {
    /// Decodes the 16 bytes, read as two little-endian words.
    #[inline]
    pub const fn from_words(address: u64, rest: u64) -> Self {
        Self {
            address,
            length: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// Encodes the descriptor as those two words.
    pub const fn words(self) -> [u64; 2] {
        let rest = self.length as u64 | (self.flags as u64) << 32 | (self.next as u64) << 48;
        [self.address, rest]
    }
}

/// The guest's memory, as a walk accesses it.
pub trait Guest {
    /// Translates the beginning of a guest range to this process's address, and the number of contiguous bytes from
    /// there (at least one); `None` if the first byte is not mapped.
    fn translate(&self, address: u64, length: u64) -> Option<(usize, u64)>;

    /// Copies one descriptor out of the ring's own table, or of a table that was translated contiguously.
    fn descriptor(&self, table: usize, index: u32) -> Descriptor;
}

/// Why a chain is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// An index beyond the end of its table.
    Index,
    /// A chain that does not end within its table.
    Loop,
    /// An address outside guest memory.
    Address,
    /// An indirect table that is empty, not a multiple of a descriptor, not contiguous, nested in another one,
    /// followed by a descriptor, or not negotiated.
    Indirect,
    /// A readable descriptor after a writable one.
    Order,
    /// More than [`MAX_SEGMENTS`], or 4 GiB or more.
    Size,
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        let what = match broken {
            Broken::Index => "a descriptor index must be below the size of its table",
            Broken::Loop => "a descriptor chain must end within its table",
            Broken::Address => "a descriptor must lie in guest memory",
            Broken::Indirect => "an indirect table must be negotiated, whole and not nested",
            Broken::Order => "descriptors to read must come before those to write",
            Broken::Size => "a request may have 129 segments and 4 GiB",
        };
        Self::new(what, 0)
    }
}

/// One request: segments to read, then segments to write.
///
/// Invariant: `start..middle` are to read, `middle..end` to write; segments taken or reserved leave these ranges.
///
/// All-zero bytes are a valid, empty chain. `segments` comes last because most of it stays untouched.
#[repr(C)]
#[derive(Debug)]
pub struct Chain {
    start: u16,
    middle: u16,
    end: u16,
    reserved: u16,
    readable: u64,
    writable: u64,
    /// Bytes from the first one to write on that may have been written.
    touched: u64,
    /// The response was written.
    answered: bool,
    answer: [Segment; MAX_RESERVED],
    segments: [Segment; MAX_SEGMENTS],
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            segments: [Segment::default(); MAX_SEGMENTS],
            start: 0,
            middle: 0,
            end: 0,
            reserved: 0,
            readable: 0,
            writable: 0,
            touched: 0,
            answered: false,
            answer: [Segment::default(); MAX_RESERVED],
        }
    }
}

impl Chain {
    /// Fills the chain from the ring's table of `size` descriptors, beginning at `head`. Previous contents are
    /// discarded, also on failure.
    ///
    /// # Errors
    /// What is invalid; the chain is then empty.
    #[inline]
    pub fn walk<G: Guest>(
        &mut self,
        guest: &G,
        table: usize,
        size: u32,
        head: u16,
        indirect: bool,
    ) -> Result<(), Broken> {
        let walked = self.fill(guest, table, size, head, indirect);
        if walked.is_err() {
            self.clear();
        }
        walked
    }

    #[inline]
    fn clear(&mut self) {
        self.start = 0;
        self.middle = 0;
        self.end = 0;
        self.reserved = 0;
        self.readable = 0;
        self.writable = 0;
        self.touched = 0;
        self.answered = false;
    }

    #[inline]
    fn fill<G: Guest>(
        &mut self,
        guest: &G,
        mut table: usize,
        mut size: u32,
        head: u16,
        indirect: bool,
    ) -> Result<(), Broken> {
        self.clear();
        let mut index = u32::from(head);
        let mut nested = false;
        let mut left = size;
        loop {
            if index >= size {
                return Err(Broken::Index);
            }
            left = left.checked_sub(1).ok_or(Broken::Loop)?;
            let descriptor = guest.descriptor(table, index);
            if descriptor.flags & INDIRECT != 0 {
                if nested || !indirect || descriptor.flags & NEXT != 0 {
                    return Err(Broken::Indirect);
                }
                (table, size) = indirect_table(guest, descriptor)?;
                nested = true;
                left = size.min(MAX_INDIRECT);
                index = 0;
                continue;
            }
            self.add(guest, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = u32::from(descriptor.next);
        }
    }

    #[inline]
    fn add<G: Guest>(&mut self, guest: &G, descriptor: Descriptor) -> Result<(), Broken> {
        let writable = descriptor.flags & WRITE != 0;
        if !writable && self.end > self.middle {
            return Err(Broken::Order);
        }
        let mut address = descriptor.address;
        let mut left = u64::from(descriptor.length);
        while left > 0 {
            let (base, piece) = guest.translate(address, left).ok_or(Broken::Address)?;
            if piece == 0 || piece > left {
                return Err(Broken::Address);
            }
            let slot = self.segments.get_mut(usize::from(self.end));
            let len = usize::try_from(piece).map_err(|_| Broken::Size)?;
            *slot.ok_or(Broken::Size)? = Segment { base, len };
            self.end = self.end.saturating_add(1);
            left = left.saturating_sub(piece);
            // May wrap only if the range ends with the address space; then `left` is 0.
            address = address.wrapping_add(piece);
        }
        let sum = match writable {
            true => &mut self.writable,
            false => {
                self.middle = self.end;
                &mut self.readable
            }
        };
        *sum = sum.saturating_add(descriptor.length.into());
        let total = self.readable.saturating_add(self.writable);
        if total > u64::from(u32::MAX) {
            return Err(Broken::Size);
        }
        Ok(())
    }

    /// Returns the segments to read.
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        let range = usize::from(self.start)..usize::from(self.middle);
        self.segments.get(range).unwrap_or_default()
    }

    /// Returns the segments to write.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        let range = usize::from(self.middle)..usize::from(self.end);
        self.segments.get(range).unwrap_or_default()
    }

    /// Returns the segments reserved for the response.
    #[inline]
    pub fn answer(&self) -> &[Segment] {
        self.answer
            .get(..usize::from(self.reserved))
            .unwrap_or_default()
    }

    /// Records that the first `n` bytes to write may have been written. Must follow any reservation.
    #[inline]
    pub fn touch(&mut self, n: u64) {
        self.touched = self.touched.max(n);
    }

    /// Records that the response was written.
    #[inline]
    pub fn note_answer(&mut self) {
        self.answered = true;
    }

    /// Yields the pieces that may have been written. A rejected request has written its response alone, whatever
    /// the size of its buffers, and a malformed chain nothing.
    pub fn written(&self) -> impl Iterator<Item = Segment> {
        let touched = usize::try_from(self.touched).unwrap_or(usize::MAX);
        let data = pieces(self.writable(), 0, touched).map(|(_, piece)| piece);
        let answer = if self.answered { self.answer() } else { &[] };
        data.chain(answer.iter().copied())
    }

    /// Returns the number of bytes to read.
    #[inline]
    pub const fn readable_len(&self) -> u64 {
        self.readable
    }

    /// Returns the number of bytes to write.
    #[inline]
    pub const fn writable_len(&self) -> u64 {
        self.writable
    }

    /// Removes the first `n` bytes to read, and passes `copy` each piece of them with its offset. `false`, with no
    /// effect, if there are fewer.
    #[inline]
    pub fn take(&mut self, n: u64, mut copy: impl FnMut(usize, Segment)) -> bool {
        if n > self.readable {
            return false;
        }
        let mut left = usize::try_from(n).unwrap_or(usize::MAX);
        let mut done = 0_usize;
        while left > 0 {
            let Some(first) = self.segments.get_mut(usize::from(self.start)) else {
                return false;
            };
            let piece = cut_front(first, left);
            if first.len == 0 {
                self.start = self.start.saturating_add(1);
            }
            copy(done, piece);
            done = done.saturating_add(piece.len);
            left = left.saturating_sub(piece.len);
        }
        self.readable = self.readable.saturating_sub(n);
        true
    }

    /// Reserves the first `n` bytes to write for the response. `false` if there are fewer, if they are in more than
    /// [`MAX_RESERVED`] pieces, or if bytes are reserved already.
    pub fn reserve_front(&mut self, n: u64) -> bool {
        if n > self.writable || self.reserved != 0 {
            return false;
        }
        let mut left = usize::try_from(n).unwrap_or(usize::MAX);
        while left > 0 {
            let Some(first) = self.segments.get_mut(usize::from(self.middle)) else {
                return false;
            };
            let piece = cut_front(first, left);
            let Some(slot) = self.answer.get_mut(usize::from(self.reserved)) else {
                return false;
            };
            *slot = piece;
            self.reserved = self.reserved.saturating_add(1);
            if first.len == 0 {
                // Advancing `middle` alone would leave the empty segment among those to read.
                self.skip_front_writable();
            }
            left = left.saturating_sub(piece.len);
        }
        self.writable = self.writable.saturating_sub(n);
        true
    }

    /// Skips the used-up segment at `middle`: it is rotated to before the segments to read.
    fn skip_front_writable(&mut self) {
        let (start, middle) = (usize::from(self.start), usize::from(self.middle));
        let moved = self.segments.get_mut(start..middle.saturating_add(1));
        if let Some(moved) = moved {
            moved.rotate_right(1);
        }
        self.start = self.start.saturating_add(1);
        self.middle = self.middle.saturating_add(1);
    }

    /// Reserves the last `n` bytes to write for the response, in at most [`MAX_RESERVED`] pieces. `false` as for
    /// [`reserve_front`](Self::reserve_front).
    #[inline]
    pub fn reserve_back(&mut self, n: u64) -> bool {
        if n > self.writable || self.reserved != 0 {
            return false;
        }
        let mut left = usize::try_from(n).unwrap_or(usize::MAX);
        while left > 0 {
            let last = usize::from(self.end).wrapping_sub(1);
            let Some(segment) = self.segments.get_mut(last) else {
                return false;
            };
            let len = segment.len.min(left);
            segment.len = segment.len.saturating_sub(len);
            let base = segment.base.saturating_add(segment.len);
            if segment.len == 0 {
                self.end = self.end.saturating_sub(1);
            }
            let reserved = usize::from(self.reserved);
            if reserved >= MAX_RESERVED {
                return false;
            }
            // Pieces are found back to front: each goes before the previous ones.
            if let Some(list) = self.answer.get_mut(..=reserved) {
                list.rotate_right(1);
                if let Some(slot) = list.first_mut() {
                    *slot = Segment { base, len };
                }
            }
            self.reserved = self.reserved.saturating_add(1);
            left = left.saturating_sub(len);
        }
        self.writable = self.writable.saturating_sub(n);
        true
    }
}

/// Cuts the first `n` bytes off a segment, or all of it.
#[inline]
fn cut_front(segment: &mut Segment, n: usize) -> Segment {
    let len = segment.len.min(n);
    let piece = Segment {
        base: segment.base,
        len,
    };
    segment.base = segment.base.saturating_add(len);
    segment.len = segment.len.saturating_sub(len);
    piece
}

/// Yields the pieces of `segments` that cover `length` bytes from `offset` on, each with the number of bytes before
/// it. Ends early if the segments do.
#[inline]
pub fn pieces(
    segments: &[Segment],
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (usize, Segment)> {
    let mut skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut done = 0_usize;
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len);
        skip = skip.saturating_sub(skipped);
        let rest = segment.len.saturating_sub(skipped);
        let len = rest.min(length.saturating_sub(done));
        if len == 0 {
            return None;
        }
        let piece = Segment {
            base: segment.base.saturating_add(skipped),
            len,
        };
        let before = done;
        done = done.saturating_add(len);
        Some((before, piece))
    })
}

fn indirect_table<G: Guest>(guest: &G, descriptor: Descriptor) -> Result<(usize, u32), Broken> {
    let length = u64::from(descriptor.length);
    if length == 0 || !length.is_multiple_of(DESCRIPTOR_SIZE) {
        return Err(Broken::Indirect);
    }
    let (table, piece) = guest
        .translate(descriptor.address, length)
        .ok_or(Broken::Address)?;
    if piece != length {
        return Err(Broken::Indirect);
    }
    let count = u32::try_from(length / DESCRIPTOR_SIZE).map_err(|_| Broken::Indirect)?;
    Ok((table, count))
}
