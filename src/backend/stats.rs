//! Translates SPDK's I/O counters into the API's volume stats.

use spdk::{Handle, bdev, errno};

use crate::api::storage::VolumeStats;
use crate::error::Error;
use crate::resource::stats::saturate;

/// Returns the counters of one volume's bdev.
///
/// # Errors
/// FAILED_PRECONDITION if the bdev is gone.
pub(crate) async fn stats_of(spdk: &Handle, bdev: String) -> Result<VolumeStats, Error> {
    let name = bdev.clone();
    let stats = spdk.call(move |spdk| async move { bdev::stats(spdk, &name).await });
    match stats.await? {
        Err(error) if error.errno.0 == errno::ENODEV => Err(volume_gone(&bdev)),
        stats => Ok(volume_stats([stats?])),
    }
}

/// Returns the counters of a bdev if `is_there`: a dependent object may have lost its bdev although one of the same
/// name exists again.
pub(crate) async fn stats_if(
    is_there: bool,
    spdk: &Handle,
    bdev: String,
) -> Result<VolumeStats, Error> {
    match is_there {
        true => stats_of(spdk, bdev).await,
        false => Err(volume_gone(&bdev)),
    }
}

/// Translates SPDK's error about the volume that `field` names: a missing bdev becomes NOT_FOUND on that field.
pub(crate) fn volume_at_fault(field: &str, volume_name_ref: &str, error: spdk::Error) -> Error {
    Error::of(error, |error| match error.errno.0 {
        errno::ENODEV => Error::NotFound {
            name: volume_name_ref.into(),
            message: format!("{field}: there is no volume {volume_name_ref:?}"),
        },
        _ => error.into(),
    })
}

/// Returns the error for a bdev that SPDK has removed.
pub(crate) fn volume_gone(bdev: &str) -> Error {
    let what = format!("the volume {bdev:?} has gone: what it was made of is not there any more");
    Error::failed_precondition(bdev, what)
}

/// Sums the counters of these bdevs, saturated to the API's integers.
pub(crate) fn volume_stats(all: impl IntoIterator<Item = bdev::Stats>) -> VolumeStats {
    let mut sum = bdev::Stats::default();
    for stats in all {
        for (total, part) in [
            (&mut sum.read_bytes, stats.read_bytes),
            (&mut sum.read_ops, stats.read_ops),
            (&mut sum.write_bytes, stats.write_bytes),
            (&mut sum.write_ops, stats.write_ops),
            (&mut sum.unmap_bytes, stats.unmap_bytes),
            (&mut sum.unmap_ops, stats.unmap_ops),
            (&mut sum.read_latency_ticks, stats.read_latency_ticks),
            (&mut sum.write_latency_ticks, stats.write_latency_ticks),
            (&mut sum.unmap_latency_ticks, stats.unmap_latency_ticks),
        ] {
            *total = total.saturating_add(part);
        }
    }
    VolumeStats {
        read_bytes_count: saturate(sum.read_bytes),
        read_ops_count: saturate(sum.read_ops),
        write_bytes_count: saturate(sum.write_bytes),
        write_ops_count: saturate(sum.write_ops),
        unmap_bytes_count: saturate(sum.unmap_bytes),
        unmap_ops_count: saturate(sum.unmap_ops),
        read_latency_ticks: saturate(sum.read_latency_ticks),
        write_latency_ticks: saturate(sum.write_latency_ticks),
        unmap_latency_ticks: saturate(sum.unmap_latency_ticks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_stop_at_the_most_that_fits() {
        let stats = |read_bytes, read_ops| bdev::Stats {
            read_bytes,
            read_ops,
            ..Default::default()
        };
        let sum = volume_stats([stats(1 << 31, 3), stats(u64::MAX, 4)]);
        assert_eq!((sum.read_bytes_count, sum.read_ops_count), (i32::MAX, 7));
    }
}
