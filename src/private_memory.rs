//! Memory that holds keys: others than the process itself do not get at it.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Keeps the memory of this process out of core dumps, and from other processes of its user (`PR_SET_DUMPABLE` of
/// prctl(2)). To be called before a key is read.
///
/// # Errors
/// One line for the operator.
pub fn keep_out_of_dumps() -> Result<(), String> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("cannot keep keys out of core dumps: {error}"))
}
