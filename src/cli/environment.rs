//! Settings from the environment: `OPI_SPDK_CORES` is `--cores`. An empty variable counts as unset, since compose
//! files and units write `NAME=` for a setting without a value.

use std::ffi::OsString;

use clap::{Arg, Command};

/// Prefix of the variables.
const PREFIX: &str = "OPI_SPDK_";

/// Variables that only scripts use.
const OTHERS: [&str; 2] = ["OPI_SPDK_CACHE", "OPI_SPDK_GUEST"];

/// Flags of the client that have variables although they are not settings of the server.
const OF_CLIENT: [&str; 3] = ["addr", "server-name", "token-file"];

/// The variable of a setting.
fn variable(setting: &str) -> String {
    format!("{PREFIX}{}", setting.to_uppercase().replace('-', "_"))
}

/// Adds a variable to each setting of the command and its subcommands.
pub fn add(command: Command) -> Command {
    let settings = settings();
    with_variables(command, &settings)
}

fn with_variables(command: Command, settings: &[String]) -> Command {
    let command = command.mut_args(|arg| match arg.get_long().map(str::to_owned) {
        Some(long) if settings.contains(&long) || OF_CLIENT.contains(&long.as_str()) => {
            set(arg, &variable(&long))
        }
        _ => arg,
    });
    let names: Vec<String> = command
        .get_subcommands()
        .map(|inner| inner.get_name().to_owned())
        .collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |inner| with_variables(inner, settings))
    })
}

fn set(arg: Arg, name: &str) -> Arg {
    match std::env::var_os(name) {
        Some(value) if !value.is_empty() => arg.env(OsString::from(name)).hide_env(true),
        _ => arg,
    }
}

/// The names of all settings.
fn settings() -> Vec<String> {
    let command = <crate::config::CommandLine as clap::CommandFactory>::command();
    let longs = command.get_arguments().filter_map(Arg::get_long);
    longs.map(str::to_owned).collect()
}

/// Rejects unknown variables with the prefix: a misspelled setting would otherwise be ignored silently.
///
/// # Errors
/// Names the variable.
pub fn check() -> Result<(), String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    unknown(names).map_or(Ok(()), |name| {
        Err(format!(
            "environment variable {name}: there is no such setting; --help lists them"
        ))
    })
}

fn unknown(mut names: impl Iterator<Item = String>) -> Option<String> {
    let settings = settings();
    let of_client = OF_CLIENT.iter().copied();
    let known = settings.iter().map(String::as_str).chain(of_client);
    let known: Vec<String> = known.map(variable).collect();
    // Kubernetes adds variables of its own for a service named opi-spdk.
    let foreign = |name: &str| name.contains("_PORT") || name.contains("_SERVICE_");
    names.find(|name| {
        name.starts_with(PREFIX)
            && !known.contains(name)
            && !OTHERS.contains(&name.as_str())
            && !foreign(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_no_setting_is_found() {
        let of = |name: &str| unknown([name.to_owned()].into_iter());
        assert_eq!(of("OPI_SPDK_CORES"), None);
        assert_eq!(of("OPI_SPDK_CONFIG"), None);
        assert_eq!(of("OPI_SPDK_NO_HUGE"), None);
        assert_eq!(of("OPI_SPDK_ADDR"), None);
        assert_eq!(of("OPI_SPDK_SERVER_NAME"), None);
        assert_eq!(of("HOME"), None);
        assert_eq!(of("OPI_SPDK_PORT_50051_TCP_ADDR"), None);
        assert_eq!(of("OPI_SPDK_SERVICE_HOST"), None);
        assert_eq!(of("OPI_SPDK_CORE").as_deref(), Some("OPI_SPDK_CORE"));
    }
}
