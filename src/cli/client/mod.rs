//! `opi-spdk get`, `create`, `update`, `delete`, `stats`, `watch`, `events`, `hosts`,
//! `disconnect`, `top`, `bundle`: the shell's client of a running opi-spdk. It knows
//! the API by its descriptors: which kinds there are, their methods, fields and values are all read off
//! these.

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

/// A subcommand that is a client.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show objects of a running opi-spdk: all, those of a kind, or one
    Get(get::Args),
    /// Make objects, from fields or from a file
    Create(change::CreateArgs),
    /// Change fields of an object
    Update(change::UpdateArgs),
    /// Delete objects
    Delete(change::DeleteArgs),
    /// Show the I/O counters of objects
    Stats(stats::Args),
    /// Show all objects with their conditions, and then what happens to them
    Watch(watch::WatchArgs),
    /// Show what happens to objects, paths and reactors, a line an event
    Events(watch::EventsArgs),
    /// Show the hosts that are connected, with their queues
    Hosts(hosts::HostsArgs),
    /// End the connections of a host
    Disconnect(hosts::DisconnectArgs),
    /// Show the load of volumes, hosts, paths and reactors on this terminal, each second
    Top(top::Args),
    /// Write what a report of a fault needs to one file, without keys
    Bundle(bundle::Args),
}

/// Runs it.
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

/// A kind, or a name that says it: shells complete the kinds.
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
