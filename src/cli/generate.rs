//! `opi-spdk generate`: writes manual pages and completions, for packages. Hidden from the help.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// `opi-spdk generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output directory
    directory: PathBuf,
}

/// Runs the subcommand.
///
/// # Errors
/// A file that cannot be written.
pub fn run(args: Args) -> Result<ExitCode, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", args.directory.display());
    std::fs::create_dir_all(&args.directory).map_err(fail)?;
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(fail)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "opi-spdk", &args.directory)
            .map_err(fail)?;
    }
    Ok(ExitCode::SUCCESS)
}
