//! Prepares a machine for opi-spdk, and undoes it: hugepages, hugetlbfs, drivers, kernel limits.
//!
//! The plan depends on the current state of the machine, which makes setup idempotent: a second run has no steps. The
//! undo of each step is journaled before the step runs, so an interrupted run can be rolled back. A reboot clears
//! everything, including the journal.

mod journal;
mod names;
mod plan;
mod step;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use names::DeviceName;
pub use plan::{Pages, Wanted};
pub use step::Step;

use crate::machine::Machine;
use crate::machine::pci::Address;
use journal::Journal;

/// Path of the journal.
pub const JOURNAL: &str = "/run/opi-spdk-setup.json";

/// Timeout for the kernel to bind a device to a driver.
const BINDING: Duration = Duration::from_secs(10);

/// Plans the steps.
///
/// # Errors
/// A request that is not allowed or not possible.
pub fn plan(machine: &Machine, wanted: &Wanted) -> Result<Vec<Step>, String> {
    plan::make(machine, wanted)
}

/// Runs the steps, and reports each one before it runs. The names of the devices are recorded before they are taken.
///
/// # Errors
/// The step that failed, and how to roll back.
pub fn apply(
    machine: &Machine,
    names: &[(DeviceName, Address)],
    steps: &[Step],
    mut tell: impl FnMut(&Step),
) -> Result<(), String> {
    if steps.is_empty() {
        return Ok(());
    }
    let mut journal = Journal::open(machine)?;
    names::record(machine, names)?;
    for step in steps {
        // Steps before it may have taken a minute.
        if let Some(user) = step.device().and_then(|address| address.in_use(machine)) {
            return Err(format!("{step}: {user}"));
        }
        journal.note(step.undo(machine))?;
        tell(step);
        step.run(machine)
            .and_then(|()| confirm(machine, step))
            .map_err(|reason| {
                format!("{step}: {reason}; what was done before it stays, and --undo takes it back")
            })?;
    }
    Ok(())
}

/// Undoes what runs of setup have done since the machine booted, in reverse order.
///
/// # Errors
/// The step that cannot be undone; the journal keeps the remaining steps.
pub fn undo(machine: &Machine, dry: bool, mut tell: impl FnMut(&Step)) -> Result<(), String> {
    if dry {
        let steps = journal::read(machine)?;
        let needed = steps.iter().rev().filter(|step| step.is_needed(machine));
        needed.for_each(tell);
        return Ok(());
    }
    let mut journal = Journal::open(machine)?;
    while let Some(step) = journal.steps().last().cloned() {
        // The step may have been journaled but not run, or its device may have been released since.
        if step.is_needed(machine) {
            if let Some(address) = step.device()
                && let Some(user) = address.in_use(machine)
            {
                return Err(format!("{address} cannot be given back: {user}"));
            }
            tell(&step);
            step.run(machine)
                .map_err(|reason| format!("{step}: {reason}"))?;
        }
        journal.forget_last()?;
    }
    journal.remove()
}

/// Waits until the kernel has completed a step.
fn confirm(machine: &Machine, step: &Step) -> Result<(), String> {
    let end = Instant::now() + BINDING;
    while step.is_pending(machine) {
        if Instant::now() >= end {
            return Err(step.unfinished(machine));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Path of the journal's file, for messages.
pub fn journal_file(machine: &Machine) -> PathBuf {
    machine.path(JOURNAL)
}

#[cfg(test)]
mod tests;
