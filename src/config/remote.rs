//! Settings of remote controllers.

use std::time::Duration;

use spdk::bdev::nvme::DEFAULT_IO_TIMEOUT;

use super::ConfigError;

/// Range of the setting, in seconds.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=3600;

/// The timeout of remote I/O.
///
/// # Errors
/// [`ConfigError::Value`] outside of one second to one hour.
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
