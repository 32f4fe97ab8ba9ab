//! `opi-spdk config check`: checks whether a configuration would be accepted.

use std::path::PathBuf;
use std::process::ExitCode;

use super::print;
use crate::config::CommandLine;

/// `opi-spdk config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Check a file as the program would when it starts; nothing is started or changed. Only the file is checked,
    /// without the flags and OPI_SPDK_ variables that take precedence over it
    Check {
        /// The TOML file
        file: PathBuf,
    },
}

/// Runs the subcommand.
///
/// # Errors
/// What is wrong with the configuration, on one line.
pub fn run(args: Args) -> Result<ExitCode, String> {
    let Action::Check { file } = args.action;
    let line = CommandLine::of_file(file.clone());
    let config = line.resolve().map_err(|error| error.to_string())?;
    if let Some(files) = &config.tls {
        crate::server::Tls::read(files)?;
    }
    crate::preflight::read_access(&config)?;
    if let Some(http) = config.spdk_rpc.as_ref().and_then(|rpc| rpc.http.as_ref()) {
        crate::spdk_rpc::Credentials::read(&http.user, &http.password_file)
            .map_err(|reason| format!("spdk-rpc-user {reason}"))?;
    }
    print(&format!(
        "{}: good; cores {}, {} MiB of {}, {} volumes (of the file alone: flags and OPI_SPDK_ variables win over it)\n",
        file.display(),
        config.cores,
        config.mem_mib,
        match config.no_huge {
            true => "ordinary memory",
            false => "hugepages",
        },
        config.volumes.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}
