//! I/O commands by reactor.
//!
//! SPDK counts them by poll group, and `thread_set_cpumask` over its JSON-RPC can move a group's thread to another core.
//! The growth since the last reading is added to the core that the group is found on, so no core's counter falls.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

thread_local! {
    /// On the app thread.
    static OPERATIONS: RefCell<Operations> = RefCell::default();
}

/// A reading of a poll group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// Identifies the group among those that exist.
    pub(super) id: usize,
    /// Core that runs its thread.
    pub(super) core: u32,
    /// I/O commands that it has completed.
    pub(super) completed: u64,
}

#[derive(Default)]
struct Operations {
    /// The last reading of each group.
    groups: HashMap<usize, u64>,
    cores: BTreeMap<u32, u64>,
}

impl Operations {
    fn add(&mut self, groups: &[Group]) {
        let mut read = HashMap::with_capacity(groups.len());
        for of in groups {
            // A counter below the last reading is that of a new group at the address of an old one.
            let before = self
                .groups
                .get(&of.id)
                .filter(|last| **last <= of.completed);
            let grown = of.completed - before.copied().unwrap_or_default();
            let core = self.cores.entry(of.core).or_default();
            *core = core.saturating_add(grown);
            read.insert(of.id, of.completed);
        }
        self.groups = read;
    }
}

/// Adds a reading of all poll groups; returns the commands by core since the start. App thread.
pub(super) fn add(groups: &[Group]) -> BTreeMap<u32, u64> {
    OPERATIONS.with_borrow_mut(|operations| {
        operations.add(groups);
        operations.cores.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_a_core_are_summed_and_no_counter_falls() {
        let mut operations = Operations::default();
        let mut read = |groups: &[(usize, u32, u64)]| {
            let groups = groups.iter().map(|&(id, core, completed)| Group {
                id,
                core,
                completed,
            });
            operations.add(&groups.collect::<Vec<_>>());
            operations
                .cores
                .iter()
                .map(|of| (*of.0, *of.1))
                .collect::<Vec<_>>()
        };
        assert_eq!(read(&[(1, 0, 5), (2, 1, 7)]), [(0, 5), (1, 7)]);
        assert_eq!(read(&[(1, 0, 6), (2, 1, 7), (3, 1, 2)]), [(0, 6), (1, 9)]);
        // The second group has moved.
        assert_eq!(read(&[(1, 0, 6), (2, 0, 9), (3, 1, 2)]), [(0, 8), (1, 9)]);
        // The third one is another group at the same address.
        assert_eq!(read(&[(1, 0, 6), (2, 0, 9), (3, 1, 1)]), [(0, 8), (1, 10)]);
        assert_eq!(read(&[]), [(0, 8), (1, 10)]);
    }
}
