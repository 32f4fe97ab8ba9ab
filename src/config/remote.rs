//! What is set for remote controllers.

use std::time::Duration;

use spdk::bdev::nvme::DEFAULT_IO_TIMEOUT;

use super::ConfigError;

/// Seconds that the setting may have.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=3600;

/// How long a peer may leave I/O unanswered.
///
/// # Errors
/// [`ConfigError::Value`] outside of a second to an hour.
pub(super) fn io_timeout(seconds: Option<u64>) -> Result<Duration, ConfigError> {
    let timeout = seconds.map_or(DEFAULT_IO_TIMEOUT, Duration::from_secs);
    if SECONDS.contains(&timeout.as_secs()) {
        return Ok(timeout);
    }
    let (least, most) = (SECONDS.start(), SECONDS.end());
    Err(ConfigError::Value {
        setting: "remote-io-timeout",
        reason: format!(
            "{} is outside of {least} to {most} seconds",
            timeout.as_secs()
        ),
    })
}
