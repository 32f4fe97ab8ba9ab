//! `opi-spdk config check`: checks whether a configuration would be accepted.

use std::path::PathBuf;
use std::process::ExitCode;

use super::print;
use crate::config::CommandLine;
use crate::setting_files;

/// `opi-spdk config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Check a file as the program would when it starts, and the files and directories that it names; nothing is
    /// started or changed. Only the file is checked, without the flags and OPI_SPDK_ variables that take precedence
    /// over it
    Check {
        /// Check only what a running opi-spdk takes over at SIGHUP: the settings, TLS files and roles
        #[arg(long)]
        reload: bool,
        /// The TOML file
        file: PathBuf,
    },
}

/// Runs the subcommand.
///
/// # Errors
/// What is wrong with the configuration, or with the files that it names: a line for each.
pub fn run(args: Args) -> Result<ExitCode, String> {
    let Action::Check { reload, file } = args.action;
    let line = CommandLine::of_file(file.clone());
    // What only the start reads or uses, such as a key, a disk that was lost since, or cores of a cpuset that has shrunk, must
    // not keep new certificates out.
    let (config, shortage) = match reload {
        true => line.resolve_running(),
        false => line.resolve().map(|config| (config, None)),
    }
    .map_err(|error| error.to_string())?;
    let faults = match reload {
        true => setting_files::check_reloaded(&config),
        false => setting_files::check(&config),
    };
    if !faults.is_empty() {
        return Err(faults.join("\nopi-spdk: "));
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
    if let Some(reason) = shortage {
        print(&format!(
            "cores: a reload leaves them, and the next start would fail: {reason}\n"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
