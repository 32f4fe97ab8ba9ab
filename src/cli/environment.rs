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
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    unknown(variables).map_or(Ok(()), |name| {
        Err(format!(
            "environment variable {name}: there is no such setting; --help lists them"
        ))
    })
}

fn unknown(variables: impl Iterator<Item = (String, String)>) -> Option<String> {
    let settings = settings();
    let of_client = OF_CLIENT.iter().copied();
    let known = settings.iter().map(String::as_str).chain(of_client);
    let known: Vec<String> = known.map(variable).collect();
    let mut unknown = variables.filter(|(name, value)| {
        name.starts_with(PREFIX)
            && !known.contains(name)
            && !OTHERS.contains(&name.as_str())
            && !of_kubernetes(name, value)
    });
    unknown.next().map(|(name, _)| name)
}

/// Whether Kubernetes has added the variable for a service named `opi-spdk` or `opi-spdk-...`: `..._SERVICE_HOST`,
/// `..._SERVICE_PORT`, `..._PORT_50051_TCP_ADDR`, and `..._PORT`, whose value is a URL (`tcp://10.0.0.1:50051`) where that
/// of a misspelled setting is a number.
fn of_kubernetes(name: &str, value: &str) -> bool {
    let has = |part| name.contains(part);
    let protocol = ["_TCP", "_UDP", "_SCTP"].into_iter().any(has);
    has("_SERVICE_HOST")
        || has("_SERVICE_PORT")
        || has("_PORT_") && protocol
        || name.ends_with("_PORT") && value.contains("://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_no_setting_is_found() {
        let with =
            |name: &str, value: &str| unknown([(name.to_owned(), value.to_owned())].into_iter());
        let of = |name: &str| with(name, "1");
        assert_eq!(of("OPI_SPDK_CORES"), None);
        assert_eq!(of("OPI_SPDK_CONFIG"), None);
        assert_eq!(of("OPI_SPDK_NO_HUGE"), None);
        assert_eq!(of("OPI_SPDK_ADDR"), None);
        assert_eq!(of("OPI_SPDK_SERVER_NAME"), None);
        assert_eq!(of("HOME"), None);
        assert_eq!(of("OPI_SPDK_PORT_50051_TCP_ADDR"), None);
        assert_eq!(of("OPI_SPDK_SERVICE_HOST"), None);
        assert_eq!(of("OPI_SPDK_SERVICE_PORT_GRPC"), None);
        assert_eq!(with("OPI_SPDK_PORT", "tcp://10.0.0.1:50051"), None);
        assert_eq!(with("OPI_SPDK_GRPC_PORT", "tcp://10.0.0.1:50051"), None);
        for wrong in [
            "OPI_SPDK_CORE",
            "OPI_SPDK_GRPC_PORT",
            "OPI_SPDK_HTTP_PORTS",
            "OPI_SPDK_SERVICE_NAME",
        ] {
            assert_eq!(of(wrong).as_deref(), Some(wrong));
        }
    }
}
