//! Makes a machine ready for opi-spdk, and as it was: hugepages, hugetlbfs, drivers, kernel limits.
//!
//! A plan is made from how the machine is, so that what is there already is no step, and a second run has
//! none. Before each step the way back is written to a journal, so a run that is cut off can be undone. All
//! of it, the journal too, is gone with a restart of the machine.

mod journal;
mod plan;
mod step;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use plan::{Pages, Wanted};
pub use step::Step;

use crate::machine::Machine;
use journal::Journal;

/// Where the journal is.
pub const JOURNAL: &str = "/run/opi-spdk-setup.json";

/// How long the kernel may take to give a device to a driver.
const BINDING: Duration = Duration::from_secs(10);

/// What there is to do, in order.
///
/// # Errors
/// What is asked for and must not, or cannot, be done.
pub fn plan(machine: &Machine, wanted: &Wanted) -> Result<Vec<Step>, String> {
    plan::make(machine, wanted)
}

/// Does it, and tells of each step before it is done.
///
/// # Errors
/// The step that failed, and how to go back.
pub fn apply(machine: &Machine, steps: &[Step], mut tell: impl FnMut(&Step)) -> Result<(), String> {
    if steps.is_empty() {
        return Ok(());
    }
    let mut journal = Journal::open(machine)?;
    for step in steps {
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

/// Takes back what runs of setup have done since the machine started, last first.
///
/// # Errors
/// What cannot be taken back; the rest of the journal is kept.
pub fn undo(machine: &Machine, dry: bool, mut tell: impl FnMut(&Step)) -> Result<(), String> {
    if dry {
        let steps = journal::read(machine)?;
        let needed = steps.iter().rev().filter(|step| step.is_needed(machine));
        needed.for_each(tell);
        return Ok(());
    }
    let mut journal = Journal::open(machine)?;
    while let Some(step) = journal.steps().last().cloned() {
        // The step may have been noted and not done, or its device have been released since.
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

/// Waits until the kernel has done what was written to it.
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

/// The journal's file, for messages.
pub fn journal_file(machine: &Machine) -> PathBuf {
    machine.path(JOURNAL)
}

#[cfg(test)]
mod tests;
