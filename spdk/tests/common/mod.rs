//! SPDK in the test's own process: one to a process, without hugepages.

use spdk::cores::CoreSet;
use spdk::{Options, Runtime};

/// Starts SPDK on a core that this process may use and no other SPDK has.
pub async fn start(mailbox_capacity: usize) -> Runtime {
    Runtime::start(Options {
        cores: free_core(),
        mem_mib: 512,
        no_huge: true,
        mailbox_capacity,
    })
    .await
    .expect("SPDK starts")
}

/// A core that this process may use and no other SPDK has.
pub fn free_core() -> CoreSet {
    CoreSet::allowed()
        .expect("affinity is readable")
        .iter()
        .map(|core| core.to_string().parse::<CoreSet>().expect("a core list"))
        .find(|core| core.claimed().is_none())
        .expect("a core that no other SPDK has")
}
