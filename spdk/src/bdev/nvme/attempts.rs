//! How many attempts to attach a controller over PCIe are under way. On the app thread alone.

use std::cell::Cell;

use super::Address;

thread_local! {
    static OVER_PCIE: Cell<usize> = const { Cell::new(0) };
}

/// Such attempts that are under way.
pub(super) fn over_pcie() -> usize {
    OVER_PCIE.get()
}

/// One attempt, for as long as it is kept: by what SPDK holds of it.
pub(super) struct Attempt {
    counts: usize,
}

impl Attempt {
    /// To this address.
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
