//! SPDK in the test's own process: one to a process, without hugepages.

use spdk::{Options, Runtime};

/// Starts SPDK on the first core that this process may use.
pub async fn start(mailbox_capacity: usize) -> Runtime {
    let allowed = spdk::cores::CoreSet::allowed().expect("affinity is readable");
    let core = allowed.iter().next().expect("a core");
    Runtime::start(Options {
        cores: core.to_string().parse().expect("a core list"),
        mem_mib: 512,
        no_huge: true,
        mailbox_capacity,
    })
    .await
    .expect("SPDK starts")
}
