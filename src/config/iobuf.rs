//! Sizes of the I/O buffer pools: derived from the number of reactors, or configured.

use std::ops::RangeInclusive;

use spdk::Iobuf;

use super::ConfigError;

/// Applies defaults that fit the reactors. Configured sizes must leave memory for the rest.
pub(super) fn check(
    small: Option<u64>,
    large: Option<u64>,
    reactors: usize,
    mem_mib: u32,
) -> Result<Iobuf, ConfigError> {
    let default = Iobuf::for_reactors(reactors);
    let pools = Iobuf {
        small: in_range("iobuf-small", small, default.small, &Iobuf::SMALL)?,
        large: in_range("iobuf-large", large, default.large, &Iobuf::LARGE)?,
    };
    let most = u64::from(mem_mib) * 3 / 4;
    if (small.is_some() || large.is_some()) && pools.mib() > most {
        return Err(ConfigError::Value {
            setting: if large.is_some() {
                "iobuf-large"
            } else {
                "iobuf-small"
            },
            reason: format!(
                "{} small and {} large buffers take {} MiB, more than three quarters of mem-mib ({most} \
                 MiB): ask for less, or raise mem-mib",
                pools.small,
                pools.large,
                pools.mib()
            ),
        });
    }
    Ok(pools)
}

/// Applies a default; the value must be in the range.
pub(super) fn in_range(
    setting: &'static str,
    asked: Option<u64>,
    default: u64,
    range: &RangeInclusive<u64>,
) -> Result<u64, ConfigError> {
    match asked {
        None => Ok(default),
        Some(number) if range.contains(&number) => Ok(number),
        Some(number) => Err(ConfigError::Value {
            setting,
            reason: format!(
                "{number} is outside of {} to {}",
                range.start(),
                range.end()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_grow_with_the_reactors_and_must_fit_the_memory() {
        let one = check(None, None, 1, 1024).unwrap();
        let many = check(None, None, 16, 1024).unwrap();
        assert!(many.small > one.small && many.large > one.large);
        let asked = check(Some(10_000), Some(4096), 1, 2048).unwrap();
        assert_eq!((asked.small, asked.large), (10_000, 4096));
        let why = |small, large| check(small, large, 1, 1024).unwrap_err().to_string();
        assert!(why(None, Some(8192)).contains("raise mem-mib"));
        assert!(why(Some(1), None).contains("1 is outside of 64 to"));
    }
}
