//! SPDK in the test's own process: once per process, without hugepages.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test uses its part"
)]

use std::io::Write;

use spdk::cores::CoreSet;
use spdk::nvmf::{Transport, namespace, subsystem, transport};
use spdk::{Error, Handle, Options, Runtime, bdev};

/// Status of a failed test program.
const FAILED: u8 = 101;

/// Starts SPDK on a core that this process may use and no other SPDK claims. See [`start_with`].
pub async fn start(mailbox_capacity: usize) -> Runtime {
    start_with(Options {
        mailbox_capacity,
        ..options()
    })
    .await
}

/// Returns options for one reactor, without hugepages, on a core that this process may use and no other SPDK claims.
pub fn options() -> Options {
    Options {
        cores: free_core(),
        longest_sleep: Some(spdk::LONGEST_SLEEP),
        measure_polls: false,
        mem_mib: 512,
        no_huge: true,
        iobuf: spdk::Iobuf::for_reactors(1),
        mailbox_capacity: 64,
        rpc_socket: None,
        remote_io_timeout: std::time::Duration::from_secs(30),
        dhchap: spdk::dhchap::Weakest::default(),
    }
}

/// Starts SPDK. From then on a panic of the calling thread, the test's, ends the process with a failure: SPDK's
/// reactors, which nothing stops then, would keep it alive.
pub async fn start_with(options: Options) -> Runtime {
    let test = std::thread::current().id();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != test {
            return report(panic);
        }
        // Not by a macro: the harness would keep back the output of those, and lose it.
        let _ = writeln!(std::io::stderr(), "{panic}");
        spdk::exit_at_once(FAILED);
    }));
    Runtime::start(options).await.expect("SPDK starts")
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

/// Creates the TCP transport, and a malloc bdev of 2048 blocks of 512 bytes.
pub async fn disk_for_tcp(handle: &Handle, name: &str) {
    run!(handle, s => transport::create(s, Transport::Tcp).await).expect("a TCP transport");
    malloc(handle, name).await;
}

/// Creates a malloc bdev of 1 MiB.
pub async fn malloc(handle: &Handle, name: &str) {
    let disk = bdev::malloc::Options {
        name: name.to_owned(),
        uuid: None,
        num_blocks: 2048,
        block_size: 512,
        metadata_size: 0,
    };
    run!(handle, s => bdev::malloc::create(s, &disk).await).expect("a bdev");
}

/// Creates a subsystem that any host may use, with the bdev as namespace 1.
pub async fn subsystem_of(handle: &Handle, nqn: &'static str, bdev: &'static str) {
    run!(handle, s => subsystem::create(s, &subsystem::Options {
        nqn: nqn.to_owned(),
        serial: "SN1".to_owned(),
        model: String::new(),
        max_namespaces: 8,
        allow_any_host: true,
    }).await)
    .expect("a subsystem");
    run!(handle, s => namespace::add(s, nqn, &namespace::Options {
        bdev: bdev.to_owned(),
        nsid: 1,
        ..namespace::Options::default()
    }).await)
    .expect("a namespace");
}

/// Returns the errno of a failure.
pub fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> i32 {
    result.expect_err("this must fail").errno.0
}
