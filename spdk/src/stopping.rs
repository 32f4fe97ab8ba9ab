//! Whether the process is ending SPDK: nothing that was lifted or stopped for that is put back.

use std::cell::Cell;

use crate::app_thread::Spdk;

thread_local! {
    /// Of the app thread.
    static STOPPING: Cell<bool> = const { Cell::new(false) };
}

/// Notes that SPDK's end has begun.
pub(crate) fn begin(_: Spdk) {
    STOPPING.set(true);
}

/// Whether SPDK's end has begun.
pub(crate) fn has_begun(_: Spdk) -> bool {
    STOPPING.get()
}
