//! Rate limits of the API, and the subset that SPDK can enforce: I/O per second of reads and writes together, in
//! thousands, and bandwidth of both, of reads, and of writes, in MiB/s.
//!
//! Only one resource at a time may limit a bdev: it owns the [`key`] of the bdev's limits, which is the same under
//! each of the bdev's names.

use spdk::bdev::qos::{IOPS_STEP, Limits};

use crate::api::storage::QosLimit;
use crate::error::Violations;
use crate::resource::Key;

/// Above the throughput of any device, and small enough for SPDK's arithmetic not to overflow.
const MAX: i64 = 1_000_000_000;

/// The key owned by the resource that limits this bdev.
pub fn key(bdev: &str) -> Key {
    Key::from(format!("limits of volume/{bdev}"))
}

/// Refuses limits that SPDK cannot enforce, naming the field under `path`.
pub fn check(limit: &QosLimit, path: &str, violations: &mut Violations) {
    for (field, value) in fields(limit) {
        let field = format!("{path}.{field}");
        if !(0..=MAX).contains(&value) {
            violations.add(field, format!("{value}: 1 to {MAX}, or 0 for no limit"));
        } else if value != 0
            && (field.ends_with("rd_iops_kiops") || field.ends_with("wr_iops_kiops"))
        {
            violations.add(
                field,
                format!(
                    "{value}: SPDK limits the I/Os of reads and writes together only, rw_iops_kiops"
                ),
            );
        }
    }
}

/// Refuses guaranteed rates, which SPDK cannot provide.
pub fn check_no_minimum(limit: &QosLimit, path: &str, violations: &mut Violations) {
    refuse(
        limit,
        path,
        "SPDK limits rates and guarantees none; leave it 0",
        violations,
    );
}

/// Refuses each limit that is set, with this reason.
pub fn refuse(limit: &QosLimit, path: &str, reason: &str, violations: &mut Violations) {
    for (field, value) in fields(limit).into_iter().filter(|(_, value)| *value != 0) {
        violations.add(format!("{path}.{field}"), format!("{value}: {reason}"));
    }
}

/// Whether no limit is set.
pub fn is_none(limit: &QosLimit) -> bool {
    fields(limit).iter().all(|(_, value)| *value == 0)
}

/// Converts validated limits for SPDK.
pub fn of(limit: &QosLimit) -> Limits {
    let rate = |value: i64| u64::try_from(value).unwrap_or_default();
    Limits {
        rw_iops: rate(limit.rw_iops_kiops).saturating_mul(IOPS_STEP),
        rw_mib: rate(limit.rw_bandwidth_mbs),
        read_mib: rate(limit.rd_bandwidth_mbs),
        write_mib: rate(limit.wr_bandwidth_mbs),
    }
}

fn fields(limit: &QosLimit) -> [(&'static str, i64); 6] {
    [
        ("rd_iops_kiops", limit.rd_iops_kiops),
        ("wr_iops_kiops", limit.wr_iops_kiops),
        ("rw_iops_kiops", limit.rw_iops_kiops),
        ("rd_bandwidth_mbs", limit.rd_bandwidth_mbs),
        ("wr_bandwidth_mbs", limit.wr_bandwidth_mbs),
        ("rw_bandwidth_mbs", limit.rw_bandwidth_mbs),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(check: impl FnOnce(&mut Violations)) -> Vec<String> {
        let mut violations = Violations::default();
        check(&mut violations);
        violations
            .iter()
            .map(|violation| violation.field.clone())
            .collect()
    }

    #[test]
    fn what_spdk_cannot_enforce_is_refused_by_name() {
        let all = QosLimit {
            rd_iops_kiops: 1,
            wr_iops_kiops: 2,
            rw_iops_kiops: 3,
            rd_bandwidth_mbs: 4,
            wr_bandwidth_mbs: -5,
            rw_bandwidth_mbs: i64::MAX,
        };
        let refused = [
            "m.rd_iops_kiops",
            "m.wr_iops_kiops",
            "m.wr_bandwidth_mbs",
            "m.rw_bandwidth_mbs",
        ];
        assert_eq!(broken(|v| check(&all, "m", v)), refused);
        assert_eq!(broken(|v| check_no_minimum(&all, "m", v)).len(), 6);
        assert!(broken(|v| check_no_minimum(&QosLimit::default(), "m", v)).is_empty());
        assert!(is_none(&QosLimit::default()) && !is_none(&all));
    }

    #[test]
    fn ios_come_in_thousands_and_bandwidth_in_mib() {
        let limits = of(&QosLimit {
            rw_iops_kiops: 3,
            rd_bandwidth_mbs: 4,
            rw_bandwidth_mbs: 2,
            ..Default::default()
        });
        let expected = Limits {
            rw_iops: 3000,
            rw_mib: 2,
            read_mib: 4,
            write_mib: 0,
        };
        assert_eq!(limits, expected);
    }
}
