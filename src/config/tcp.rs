//! Sizes of the NVMe/TCP transport.

use spdk::nvmf::TcpSizes;

use super::ConfigError;
use super::iobuf::in_range;

/// Applies SPDK's defaults.
pub(super) fn check(
    queue_depth: Option<u64>,
    in_capsule: Option<u64>,
    io_unit: Option<u64>,
    buffers: Option<u64>,
) -> Result<TcpSizes, ConfigError> {
    let default = TcpSizes::default();
    let size = |setting, asked, default: u32, range| -> Result<u32, ConfigError> {
        let size = in_range(setting, asked, default.into(), range)?;
        // The ranges end far below.
        Ok(u32::try_from(size).unwrap_or(default))
    };
    let queue_depth = size(
        "tcp-queue-depth",
        queue_depth,
        default.queue_depth.into(),
        &TcpSizes::QUEUE_DEPTH,
    )?;
    let in_capsule = size(
        "tcp-in-capsule",
        in_capsule,
        default.in_capsule,
        &TcpSizes::IN_CAPSULE,
    )?;
    let io_unit = size("tcp-io-unit", io_unit, default.io_unit, &TcpSizes::IO_UNIT)?;
    let value = |setting, reason| Err(ConfigError::Value { setting, reason });
    if in_capsule % 1024 != 0 {
        let reason = format!("{in_capsule} is not a multiple of 1024");
        return value("tcp-in-capsule", reason);
    }
    if !io_unit.is_power_of_two() {
        return value("tcp-io-unit", format!("{io_unit} is not a power of two"));
    }
    Ok(TcpSizes {
        queue_depth: u16::try_from(queue_depth).unwrap_or(default.queue_depth),
        in_capsule,
        io_unit,
        buffers: size("tcp-buffers", buffers, default.buffers, &TcpSizes::BUFFERS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_defaults_and_bounds() {
        assert_eq!(check(None, None, None, None).unwrap(), TcpSizes::default());
        let asked = check(Some(256), Some(8192), Some(16384), Some(2048)).unwrap();
        let sizes = (
            asked.queue_depth,
            asked.in_capsule,
            asked.io_unit,
            asked.buffers,
        );
        assert_eq!(sizes, (256, 8192, 16384, 2048));
        let why = |depth, capsule, unit| check(depth, capsule, unit, None).unwrap_err().to_string();
        assert!(why(Some(4096), None, None).starts_with("tcp-queue-depth: 4096 is outside of 16"));
        assert!(why(None, Some(0), None).starts_with("tcp-in-capsule: 0 is outside of 1024"));
        assert!(why(None, Some(1500), None).contains("not a multiple of 1024"));
        assert!(why(None, None, Some(12288)).contains("not a power of two"));
    }
}
