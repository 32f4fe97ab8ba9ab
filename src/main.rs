//! The `opi-spdk` program: reads its configuration, acquires resources of the machine, starts SPDK and the servers,
//! and stops them in order.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use opi_spdk::cli::{Cli, Request};
use opi_spdk::config::{CommandLine, Config};
use opi_spdk::preflight::{self, Ready};
use opi_spdk::private_memory;
use opi_spdk::program;
use opi_spdk::reload::Reload;
use opi_spdk::telemetry;

/// Freeing memory that another thread allocated takes no lock in mimalloc: a reactor frees what control threads
/// allocate, and must never wait for them. Freed memory is wiped, since it may have held a key. Not used with
/// AddressSanitizer, which only tracks its own allocator.
#[cfg(not(asan))]
#[global_allocator]
static ALLOCATOR: spdk::Wiping<mimalloc::MiMalloc> = spdk::Wiping(mimalloc::MiMalloc);

/// Maximum number of worker threads for the servers.
const WORKERS_MAX: usize = 8;

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error)
            if error.use_stderr()
                && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            eprintln!("opi-spdk: {}", one_line(&error));
            return ExitCode::from(2);
        }
        // clap reports --help and --version as errors.
        Err(answer) => answer.exit(),
    };
    let done = cli.run().and_then(|request| match request {
        Request::Serve(line) => start(*line).map(|()| ExitCode::SUCCESS),
        Request::Done(status) => Ok(status),
    });
    telemetry::log::finish();
    match done {
        Ok(status) => status,
        Err(reason) => {
            eprintln!("opi-spdk: {reason}");
            // SPDK may be the cause of the failure, and its threads may still run.
            spdk::exit_at_once(1)
        }
    }
}

/// clap's error without the usage text after the blank line, but with its suggestion for a misspelled argument.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let what = text.strip_prefix("error: ").unwrap_or(&text);
    let lines: Vec<_> = what
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let advice = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(meant)) => format!("did you mean {meant}"),
        _ => "--help tells what there is".to_owned(),
    };
    format!("{}; {advice}", lines.join(" "))
}

/// Runs the program. An error is one line for the operator.
fn start(line: CommandLine) -> Result<(), String> {
    let resolved = line.clone().resolve();
    let config = resolved.map_err(|error| error.to_string())?;
    let set_log_level = telemetry::log::init(&config)?;
    // Before any key is read.
    if !config.core_dump {
        private_memory::keep_out_of_dumps()?;
    }
    let ready = preflight::prepare(&config)?;
    // Before any thread is started, since threads inherit the affinity. SPDK pins its own threads.
    let pinned = ready.control_cores.pin_current_thread();
    pinned.map_err(|error| format!("cannot run on cores {}: {error}", ready.control_cores))?;
    telemetry::log::written_by_a_thread();
    let tls = ready.listeners.tls.clone();
    let access = ready.listeners.access.clone();
    let reload = Reload::new(line, config.clone(), tls, access, set_log_level);
    run(config, ready, reload)
}

fn run(config: Config, ready: Ready, reload: Reload) -> Result<(), String> {
    let workers = ready.control_cores.iter().count().clamp(1, WORKERS_MAX);
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start threads: {error}"))?;
    let result = tokio.block_on(async {
        reload.watch()?;
        program::run(config, ready).await
    });
    // Remaining tasks have had their time to drain.
    tokio.shutdown_background();
    result
}
