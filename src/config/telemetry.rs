//! Settings of logs.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// Log format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For humans.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Requires an audit log for a key.
pub(super) fn audit_key_file(
    path: Option<PathBuf>,
    audit_log: Option<&PathBuf>,
) -> Result<Option<PathBuf>, ConfigError> {
    match path {
        Some(_) if audit_log.is_none() => Err(ConfigError::Value {
            setting: "audit-key-file",
            reason: "without audit-log there is nothing to use the key for".to_owned(),
        }),
        path => Ok(path),
    }
}

/// Requires an absolute path: it is reopened at each SIGHUP, independently of the working directory.
pub(super) fn audit_log(path: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    match path {
        Some(path) if !path.is_absolute() => Err(ConfigError::Value {
            setting: "audit-log",
            reason: format!("{path:?} is not an absolute path"),
        }),
        path => Ok(path),
    }
}
