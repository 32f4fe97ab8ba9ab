//! Protocol-aware fuzzers for the running program, one per door: a case is a list of steps generated
//! from a seed, mostly valid with some malformed, and with API calls in between.
//!
//! ```text
//! seed ─► case (steps, as JSON) ─► run on the target ─► invariants hold? ── no ─► remove steps while
//!                                                       └─ yes: next seed         it fails ─► a file
//! ```
//!
//! Without arguments each door gets a few seconds. `scripts/fuzz.sh` fuzzes a door for longer, also in
//! builds with sanitizers. The cases in `corpus/<door>/`, earlier findings, run first.

#[path = "../common/mod.rs"]
mod common;

mod bend;
mod door;
mod draw;
mod host;
mod peer;
mod tls;
mod vfio_user;
mod vhost_user;
mod world;

use common::vhost_user as vhost_user_client;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use door::{replay, seeds};

/// Default duration per door, s.
const SECONDS: u64 = 10;

/// Fuzzes the doors of the built program
#[derive(Parser)]
struct Arguments {
    /// The door to fuzz [default: all]
    #[arg(long)]
    door: Option<String>,
    /// Seconds per door
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// Seed of the first case; the following cases use the following numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs only the case in this file
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Lists the doors, as test runners ask
    #[arg(long)]
    list: bool,
    /// Arguments of test runners; ignored
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _others: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let named = |name: &str| arguments.door.as_deref().is_none_or(|only| only == name);
    let doors: Vec<_> = door::all()
        .into_iter()
        .filter(|door| named(door.name()))
        .collect();
    if doors.is_empty() {
        eprintln!("fuzz: there is no door {:?}", arguments.door);
        return ExitCode::from(2);
    }
    if arguments.list {
        doors
            .iter()
            .for_each(|door| println!("{}: test", door.name()));
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("threads");
    // Violations are reported by panics, which are expected while a case is minimized.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = 0;
    for door in &doors {
        let end = Instant::now() + Duration::from_secs(arguments.seconds);
        let outcome = match &arguments.replay {
            Some(file) => runtime.block_on(replay(door.as_ref(), file)),
            None => runtime.block_on(seeds(door.as_ref(), arguments.seed, end)),
        };
        match outcome {
            Ok(cases) => println!("{}: {cases} cases, none did harm", door.name()),
            Err(finding) => {
                failed += 1;
                println!("{}: {finding}", door.name());
            }
        }
    }
    println!(
        "test result: {} passed; {failed} failed",
        doors.len() - failed
    );
    println!("{} passed, {failed} failed", doors.len() - failed);
    ExitCode::from(u8::from(failed > 0))
}
