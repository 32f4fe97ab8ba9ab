//! Fuzzers that know the protocols, one a door, against the running program: each case is a list of
//! steps drawn from a seed, right by default and wrong in some places, with API calls in between.
//!
//! ```text
//! seed ─► Case (steps, as JSON) ─► run on the target ─► unharmed? ── no ─► fewer steps, as long as
//!                                        └─ yes: the next seed             it fails ─► a file
//! ```
//!
//! Without arguments each door has a few seconds. `scripts/fuzz.sh` runs a door for long, also on builds
//! with sanitizers. Cases of `corpus/<door>/` run first: findings of before.

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

/// What each door gets where nothing is said, seconds.
const SECONDS: u64 = 10;

/// Fuzzes the doors of the built program.
#[derive(Parser)]
struct Arguments {
    /// The door; all of them if none is named
    #[arg(long)]
    door: Option<String>,
    /// How long each door is tried
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// The first case's seed; the next has the next number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs this file's case alone
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Lists the doors, as test runners ask
    #[arg(long)]
    list: bool,
    /// Of test runners, which call tests alike: taken and without effect
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
    // What is unharmed is told by panics, which are expected where cases are made smaller.
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
