//! The command line: the program that serves, and its subcommands, one file each.

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

/// What the program does other than serve.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Client(client::Command),
    /// Look at the machine: what is wrong with it for opi-spdk, why it matters, and the command that mends it
    Doctor(doctor::Args),
    /// Make the machine ready: hugepages, hugetlbfs, PCI devices, limits; and take it back
    Setup(setup::Args),
    /// Ask a running opi-spdk whether it serves
    Health(health::Args),
    /// Write manual pages and completions
    #[command(hide = true)]
    Generate(generate::Args),
    /// Export, import and check the state of an opi-spdk that does not run
    State(state::Args),
    /// Look at configurations
    Config(config::Args),
    /// Check audit logs
    Audit(audit::Args),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// To serve with these settings.
    Serve(Box<CommandLine>),
    /// A subcommand has run; this is its exit status.
    Done(ExitCode),
}

impl Cli {
    /// Reads the command line and the environment.
    ///
    /// # Errors
    /// What clap says; help and version are errors too.
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

/// Writes to the standard output; a reader that has gone (`| head`) is no fault.
fn print(text: &str) -> Result<(), String> {
    printed(text).map(drop)
}

/// The same; whether somebody reads it still.
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
