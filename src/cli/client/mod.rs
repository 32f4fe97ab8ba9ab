//! The command-line client of a running opi-spdk: `get`, `create`, `update`, `delete`, `stats`, `watch`, `events`,
//! `hosts`, `disconnect`, `top`, `bundle`. Kinds, methods, fields and values come from the API's descriptors.

mod bundle;
mod change;
mod connection;
mod failure;
mod fields;
mod file;
mod get;
mod hosts;
mod http;
mod kinds;
mod metrics;
mod output;
mod reference;
mod stats;
mod top;
mod watch;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};

use connection::{Connect, Connection};
use failure::Failure;

use failure::EXIT_STATUS;

/// The client's subcommands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show objects of a running opi-spdk: all, all of a kind, or one
    Get(get::Args),
    /// Create objects, from fields or from a file
    Create(change::CreateArgs),
    /// Change fields of an object
    Update(change::UpdateArgs),
    /// Delete objects
    Delete(change::DeleteArgs),
    /// Show the I/O counters of objects
    Stats(stats::Args),
    /// Show all objects with their conditions, then their changes
    Watch(watch::WatchArgs),
    /// Show events of objects, paths and reactors, one per line
    Events(watch::EventsArgs),
    /// Show the connected hosts with their queues
    Hosts(hosts::HostsArgs),
    /// Disconnect a host
    Disconnect(hosts::DisconnectArgs),
    /// Show the load of volumes, hosts, paths and reactors on this terminal, every second
    Top(top::Args),
    /// Collect what a bug report needs into one file, without keys
    Bundle(bundle::Args),
}

/// Runs the subcommand.
pub(super) fn run(command: Command) -> ExitCode {
    let done = runtime().and_then(|runtime| {
        runtime.block_on(async {
            match command {
                Command::Get(args) => get::run(args).await,
                Command::Create(args) => change::create(args).await,
                Command::Update(args) => change::update(args).await,
                Command::Delete(args) => change::delete(args).await,
                Command::Stats(args) => stats::run(args).await,
                Command::Watch(args) => watch::watch(args).await,
                Command::Events(args) => watch::events(args).await,
                Command::Hosts(args) => hosts::hosts(args).await,
                Command::Disconnect(args) => hosts::disconnect(args).await,
                Command::Top(args) => top::run(args).await,
                Command::Bundle(args) => bundle::run(args).await,
            }
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Here(format!("cannot start: {error}")))
}

/// Parses a kind or a name that contains it. Gives the kinds to shell completion.
#[derive(Debug, Clone)]
struct KindParser;

impl TypedValueParser for KindParser {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let kinds = kinds::all().iter();
        Some(Box::new(
            kinds.map(|kind| PossibleValue::new(kind.plural())),
        ))
    }
}
