//! How much a device may do per turn of its poller, so that the devices of a worker share it fairly.

/// The most requests of a turn.
pub const REQUESTS: u32 = 128;

/// Bytes of data after which a turn takes no further request: what 128 requests of 8 KiB have. The last request may
/// exceed it, so one turn has up to 16 MiB more.
pub const BYTES: u64 = 1 << 20;

/// One turn of a device over its rings.
#[derive(Debug, Default)]
pub struct Turn {
    requests: u32,
    bytes: u64,
}

impl Turn {
    /// Begins a turn.
    pub const fn new() -> Self {
        Self {
            requests: 0,
            bytes: 0,
        }
    }

    /// Records a request with the number of bytes that it reads or changes on its volume.
    #[inline]
    pub const fn took(&mut self, bytes: u64) {
        self.requests = self.requests.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Returns whether the turn must take no further request.
    #[inline]
    pub const fn is_spent(&self) -> bool {
        self.requests >= REQUESTS || self.bytes >= BYTES
    }

    /// Returns whether the turn took any request.
    #[inline]
    pub const fn has_work(&self) -> bool {
        self.requests > 0
    }

    /// Returns the ring that the next turn begins with, where this one began with `first` of `rings` and polled
    /// `polled` of them. A spent turn advances even if it reached all rings, since the last one was cut short.
    #[inline]
    pub fn next_first(&self, first: usize, polled: usize, rings: usize) -> usize {
        if !self.is_spent() {
            return first;
        }
        let step = if polled < rings { polled.max(1) } else { 1 };
        first.saturating_add(step).checked_rem(rings).unwrap_or(0)
    }
}
