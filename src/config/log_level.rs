//! The log filter.

use super::ConfigError;

/// Requires a plain word to be a level: `tracing` would take it for a target and silence everything else.
pub(super) fn check(text: String) -> Result<String, ConfigError> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let good = |part: &str| {
        part.contains('=')
            || levels
                .iter()
                .any(|level| part.trim().eq_ignore_ascii_case(level))
    };
    match text.split(',').find(|part| !good(part)) {
        None => Ok(text),
        Some(part) => Err(ConfigError::Value {
            setting: "log-level",
            reason: format!(
                "{part:?} is not one of {}, nor target=level",
                levels.join(", ")
            ),
        }),
    }
}
