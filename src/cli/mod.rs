//! The command line: the server, and its subcommands in one file each.

mod audit;
mod client;
mod config;
mod doctor;
mod environment;
mod generate;
mod health;
mod setup;
mod state;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{CommandLine, VERSION};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "opi-spdk",
    version,
    long_version = VERSION.as_str(),
    about,
    args_conflicts_with_subcommands = true,
    after_help = "Each setting can also be an environment variable (OPI_SPDK_GRPC_ADDR for --grpc-addr) or a line \
                  of the file. Flags win over variables, and variables over the file."
)]
pub struct Cli {
    #[command(flatten)]
    serve: CommandLine,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Client(client::Command),
    /// Check the machine: what is wrong for opi-spdk, why it matters, and the command that fixes it
    Doctor(doctor::Args),
    /// Prepare the machine: hugepages, hugetlbfs, PCI devices, limits; and undo it
    Setup(setup::Args),
    /// Check whether a running opi-spdk serves
    Health(health::Args),
    /// Write manual pages and completions
    #[command(hide = true)]
    Generate(generate::Args),
    /// Export, import and check the state of a stopped opi-spdk
    State(state::Args),
    /// Check configurations
    Config(config::Args),
    /// Check audit logs
    Audit(audit::Args),
}

/// The request of a command line.
#[derive(Debug)]
pub enum Request {
    /// Serve with these settings.
    Serve(Box<CommandLine>),
    /// A subcommand has run, with this exit status.
    Done(ExitCode),
}

impl Cli {
    /// Parses the command line and the environment.
    ///
    /// # Errors
    /// clap's error; --help and --version also arrive as one.
    pub fn read() -> Result<Self, clap::Error> {
        let command = environment::add(Self::command());
        let matches = command.try_get_matches_from(std::env::args_os())?;
        Self::from_arg_matches(&matches)
    }

    /// Runs the subcommand, if there is one.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn run(self) -> Result<Request, String> {
        match self.command {
            None => {
                environment::check()?;
                Ok(Request::Serve(Box::new(self.serve)))
            }
            Some(Command::Client(command)) => Ok(Request::Done(client::run(command))),
            Some(Command::Doctor(args)) => doctor::run(args).map(Request::Done),
            Some(Command::Setup(args)) => setup::run(args).map(Request::Done),
            Some(Command::Health(args)) => health::run(args).map(Request::Done),
            Some(Command::Generate(args)) => generate::run(args).map(Request::Done),
            Some(Command::Config(args)) => config::run(args).map(Request::Done),
            Some(Command::State(args)) => state::run(args).map(Request::Done),
            Some(Command::Audit(args)) => audit::run(args).map(Request::Done),
        }
    }
}

/// Writes to the standard output. A closed pipe (`| head`) is not an error.
fn print(text: &str) -> Result<(), String> {
    printed(text).map(drop)
}

/// Writes to the standard output. Returns `false` if the pipe is closed.
fn printed(text: &str) -> Result<bool, String> {
    use std::io::Write;
    let mut output = std::io::stdout().lock();
    let written = output.write_all(text.as_bytes());
    match written.and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("standard output: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_also_with_the_environment() {
        Cli::command().debug_assert();
        environment::add(Cli::command()).debug_assert();
    }

    #[test]
    fn settings_before_a_subcommand_are_refused_instead_of_ignored() {
        let refused = Cli::try_parse_from(["opi-spdk", "--cores", "1", "doctor"]);
        assert!(refused.unwrap_err().to_string().contains("--cores"));
        assert!(Cli::try_parse_from(["opi-spdk", "doctor", "--cores", "1"]).is_ok());
    }
}
