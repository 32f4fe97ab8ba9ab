//! How many queues a host may have. Each takes memory and a file descriptor for as long as the host wants.
//!
//! A host of few queues is bounded by what there is. A host of many must leave a quarter of it, so that neither one
//! such host nor several together keep others out.

/// Queues that a host has whatever they leave: a controller of a host of 64 cores.
pub const HOST_QUEUES_FREE: u32 = 65;

/// Queues that a host has at most: half of the controller IDs of a subsystem, which are 16 bits.
pub const HOST_QUEUES_MAX: u32 = 32_768;

/// The part of all queues, used and possible, that a host of many leaves: one divided by this.
const LEFT: u64 = 4;

/// The part of the file descriptors that queues of hosts may take: one divided by this.
const FILES: u64 = 2;

/// What queues are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supply {
    /// Free memory, in bytes.
    pub memory: u64,
    /// Memory of a queue, in bytes.
    pub queue: u64,
    /// The process's limit of file descriptors.
    pub files: u64,
}

impl Supply {
    /// Returns whether a host with `held` queues may have another one. All hosts together have `all`.
    pub fn allows(&self, held: u32, all: u32) -> bool {
        if held < HOST_QUEUES_FREE {
            return true;
        }
        let all = u64::from(all);
        let more = self.memory.checked_div(self.queue).unwrap_or(u64::MAX);
        let files = self.files.checked_div(FILES).unwrap_or_default();
        held < HOST_QUEUES_MAX && leaves(more, all) && leaves(files.saturating_sub(all), all)
    }
}

/// Returns whether a queue leaves its part, if so `more` are possible beside `all`.
fn leaves(more: u64, all: u64) -> bool {
    let left = more.saturating_sub(1).saturating_mul(LEFT);
    more > 0 && left >= more.saturating_add(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUEUE: u64 = 786 << 10;
    const FILES_ENOUGH: u64 = 1 << 20;

    /// Queues that fit in what `--mem-mib 1024`, its default, and 512 leave.
    const DEFAULT: u64 = 826;
    const LEAST: u64 = 164;

    fn supply(free: u64, files: u64) -> Supply {
        Supply {
            memory: free * QUEUE,
            queue: QUEUE,
            files,
        }
    }

    /// Lets hosts take queues one after the other, each as many as it may have; returns these numbers.
    fn greedy(hosts: usize, total: u64, files: u64) -> std::vec::Vec<u64> {
        let mut all = 0_u64;
        let take = |_| {
            let mut held = 0_u64;
            let fits = |all: u64| all < total.min(files / FILES);
            while fits(all)
                && supply(total - all, files)
                    .allows(u32::try_from(held).unwrap(), u32::try_from(all).unwrap())
            {
                held += 1;
                all += 1;
            }
            held
        };
        (0..hosts).map(take).collect()
    }

    #[test]
    fn one_host_has_three_quarters_at_most() {
        assert_eq!(greedy(1, DEFAULT, FILES_ENOUGH), [619]);
        assert_eq!(greedy(1, LEAST, FILES_ENOUGH), [123]);
        assert_eq!(greedy(1, DEFAULT, 1024), [384]);
        let most = u64::from(HOST_QUEUES_MAX);
        assert_eq!(greedy(1, 1 << 20, 1 << 22), [most]);
    }

    #[test]
    fn a_host_of_64_cores_has_eight_paths_by_default() {
        assert!(greedy(1, DEFAULT, FILES_ENOUGH)[0] >= 8 * 65);
    }

    #[test]
    fn several_hosts_of_many_leave_room_for_hosts_of_few() {
        let free = u64::from(HOST_QUEUES_FREE);
        assert_eq!(
            greedy(4, DEFAULT, FILES_ENOUGH),
            [619, free, free, free],
            "the quarter is for hosts of few"
        );
    }

    #[test]
    fn a_host_of_few_is_bounded_by_what_there_is() {
        let none = supply(0, 0);
        assert!(none.allows(0, 0));
        assert!(none.allows(HOST_QUEUES_FREE - 1, u32::MAX));
        assert!(!none.allows(HOST_QUEUES_FREE, 0));
        let unlimited = Supply {
            memory: u64::MAX,
            queue: 0,
            files: u64::MAX,
        };
        assert!(unlimited.allows(HOST_QUEUES_MAX - 1, u32::MAX));
        assert!(!unlimited.allows(HOST_QUEUES_MAX, 0));
    }

    proptest! {
        #[test]
        fn a_host_of_many_leaves_a_quarter(
            memory: u64, queue: u64, files: u64, all: u32, held in HOST_QUEUES_FREE..HOST_QUEUES_MAX,
        ) {
            let it = Supply { memory, queue, files };
            if it.allows(held, all) && queue > 0 {
                let (more, all) = (u128::from(memory / queue), u128::from(all));
                prop_assert!(more > 0 && (more - 1) * 4 >= more + all);
                let more = u128::from(files / FILES).saturating_sub(all);
                prop_assert!(more > 0 && (more - 1) * 4 >= more + all);
            }
        }

        #[test]
        fn fewer_queues_are_never_worse(
            memory: u64, queue: u64, files: u64, all: u32, held: u32, less: u32,
        ) {
            let it = Supply { memory, queue, files };
            if it.allows(held, all) {
                prop_assert!(it.allows(held.saturating_sub(less), all));
                prop_assert!(it.allows(held, all.saturating_sub(less)));
            }
        }

        #[test]
        fn no_number_of_hosts_of_many_takes_the_last_quarter(hosts in 1..8_usize, total in 4..4000_u64) {
            let taken = greedy(hosts, total, FILES_ENOUGH);
            let free = u64::from(HOST_QUEUES_FREE);
            let beyond: u64 = taken.iter().map(|held| held.saturating_sub(free)).sum();
            prop_assert!(beyond <= total - total / 4);
            prop_assert!(taken.iter().sum::<u64>() <= total);
        }
    }
}
