//! I/O latency histograms with the same bounds for all volumes, so that they can be aggregated.

use std::time::Duration;

use spdk::bdev::Latencies;

/// Bucket bounds in microseconds: from a memory access to a timeout.
const BOUNDS: [u64; 20] = [
    5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// Latency histogram of a volume.
#[derive(Debug, PartialEq)]
pub(super) struct Histogram {
    /// I/O per bucket; the last bucket has no upper bound.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// Converts SPDK's histogram. Its buckets are finer and may span one of our bounds: each bucket is counted where
    /// its middle lies, an error of a tenth of the latency at most.
    pub(super) fn of(latencies: &Latencies) -> Self {
        let (mut counts, mut sum) = ([0; BOUNDS.len() + 1], 0.0);
        for &(end, count) in &latencies.0 {
            // The width of a bucket is 1/5 to 1/4 of its lower bound.
            let middle = end.mul_f64(0.9);
            let at = BOUNDS.partition_point(|&bound| Duration::from_micros(bound) < middle);
            counts[at] += count;
            sum += middle.as_secs_f64() * count as f64;
        }
        Self { counts, sum }
    }

    /// Number of I/O per bucket.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().copied()
    }

    /// Sum of the latencies, in seconds.
    pub(super) fn sum(&self) -> f64 {
        self.sum
    }
}

/// The upper bounds in seconds, as text.
pub(super) fn bounds() -> Vec<String> {
    let bounds = BOUNDS.iter().map(|&bound| (bound as f64 / 1e6).to_string());
    bounds.chain(["+Inf".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(buckets: &[(u64, u64)]) -> Histogram {
        let buckets = buckets.iter();
        Histogram::of(&Latencies(
            buckets
                .map(|&(end, count)| (Duration::from_nanos(end), count))
                .collect(),
        ))
    }

    #[test]
    fn each_latency_counts_once_and_in_its_place() {
        let found = of(&[(1_100, 3), (12_000, 2), (900_000, 1), (60_000_000_000, 4)]);
        assert_eq!(found.counts[0], 3, "below 5 us");
        assert_eq!(found.counts[2], 2, "10 to 20 us");
        assert_eq!(found.counts[7], 1, "0.5 to 1 ms");
        assert_eq!(found.counts[BOUNDS.len()], 4, "beyond 10 s");
        assert_eq!(found.counts.iter().sum::<u64>(), 10);
    }

    #[test]
    fn the_sum_is_near_what_it_took() {
        let found = of(&[(100_000, 10)]);
        assert!((0.0008..0.001).contains(&found.sum), "{}", found.sum);
    }

    #[test]
    fn the_bounds_ascend() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
        let written = bounds();
        assert_eq!(
            (written[0].as_str(), written[20].as_str()),
            ("0.000005", "+Inf")
        );
    }
}
