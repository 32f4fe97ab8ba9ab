//! Data integrity of every export over every kind of volume: data written through an export reads back
//! the same, and write zeroes, unmap and flush affect exactly their own blocks.
//!
//! ```text
//! ways in:  malloc, aio, remote, encrypted, limited
//!    └ volume ─► export ─► write ─► read ─► verify + zero + unmap + flush at once ─► read
//!                  └ ways out: NVMe/TCP, the same with TLS, vfio-user, vhost-user-blk, vhost-user-scsi
//! ```
//!
//! One target serves all pairs, one after another. A test has the name of its pair.

#[path = "../common/mod.rs"]
mod common;
mod lab;
mod pair;
mod ways_in;
mod ways_out;

use std::process::ExitCode;
use std::sync::Arc;

use common::Target;
use lab::Lab;
use libtest_mimic::{Arguments, Trial};
use ways_in::WAYS_IN;
use ways_out::WAYS_OUT;

/// Size of each volume, MiB.
pub const MIB: u32 = 4;

/// Block size, bytes.
pub const BLOCK: u32 = 512;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Concurrent pairs would distort each other's measurements.
    arguments.test_threads = Some(1);
    let target = (!arguments.list).then(|| Arc::new(block_on(lab::start())));
    let conclusion = libtest_mimic::run(&arguments, trials(target.as_ref()));
    if let Some(target) = target.and_then(Arc::into_inner) {
        if conclusion.has_failed() {
            eprintln!("--- log of the target ---\n{}", target.log());
        }
        target.stop();
    }
    conclusion.exit_code()
}

fn trials(target: Option<&Arc<Target>>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for way_in in WAYS_IN {
        for way_out in WAYS_OUT {
            let target = target.cloned();
            let run = move || {
                let target = target.expect("tests that run have a target");
                block_on(async { pair::holds(&Lab::connect(target).await, way_in, way_out).await });
                Ok(())
            };
            trials.push(Trial::test(
                format!("{} over {}", way_out.name, way_in.name),
                run,
            ));
        }
    }
    trials
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}
