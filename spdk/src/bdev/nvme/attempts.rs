//! Counts attempts in flight to attach a controller over PCIe. App thread only.

use std::cell::Cell;

use super::Address;

thread_local! {
    static OVER_PCIE: Cell<usize> = const { Cell::new(0) };
}

/// Returns the number of attempts over PCIe in flight.
pub(super) fn over_pcie() -> usize {
    OVER_PCIE.get()
}

/// Counts one attempt for its own lifetime: owned by the context that SPDK holds while it connects.
pub(super) struct Attempt {
    counts: usize,
}

impl Attempt {
    /// Starts counting an attempt to attach this address; only PCIe counts.
    pub(super) fn to(address: &Address) -> Self {
        let counts = usize::from(matches!(address, Address::Pcie { .. }));
        OVER_PCIE.set(OVER_PCIE.get() + counts);
        Self { counts }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        OVER_PCIE.set(OVER_PCIE.get() - self.counts);
    }
}
