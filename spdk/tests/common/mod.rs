//! SPDK in the test's own process: once per process, without hugepages.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test uses its part"
)]

use spdk::cores::CoreSet;
use spdk::{Error, Options, Runtime};

/// Starts SPDK on a core that this process may use and no other SPDK claims.
pub async fn start(mailbox_capacity: usize) -> Runtime {
    Runtime::start(Options {
        cores: free_core(),
        longest_sleep: Some(spdk::LONGEST_SLEEP),
        measure_polls: false,
        mem_mib: 512,
        no_huge: true,
        iobuf: spdk::Iobuf::for_reactors(1),
        mailbox_capacity,
        rpc_socket: None,
        remote_io_timeout: std::time::Duration::from_secs(30),
    })
    .await
    .expect("SPDK starts")
}

/// Returns a core that this process may use and no other SPDK claims.
pub fn free_core() -> CoreSet {
    CoreSet::allowed()
        .expect("affinity is readable")
        .iter()
        .map(|core| core.to_string().parse::<CoreSet>().expect("a core list"))
        .find(|core| core.claimed().is_none())
        .expect("a core that no other SPDK has")
}

/// `run!(handle, spdk => expression)`: runs an async expression on the app thread and returns its value.
macro_rules! run {
    ($handle:expr, $spdk:ident => $body:expr) => {
        $handle
            .call(move |$spdk| async move { $body })
            .await
            .expect("the engine runs")
    };
}
pub(crate) use run;

/// Returns the errno of a failure.
pub fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> i32 {
    result.expect_err("this must fail").errno.0
}
