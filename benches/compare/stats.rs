//! Percentiles over all samples, and medians with their spread over rounds.

use std::time::Duration;

use serde::Serialize;

/// Summary of a set of latencies. Times are in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    pub samples: usize,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Latency {
    /// `None` without samples.
    pub fn of(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let at = |fraction| rank(&samples, fraction).map(micros);
        Some(Self {
            samples: samples.len(),
            p50_us: at(0.5)?,
            p90_us: at(0.9)?,
            p99_us: at(0.99)?,
            p999_us: at(0.999)?,
            max_us: at(1.0)?,
        })
    }
}

/// The smallest sample not exceeded by at least `fraction` of all (nearest rank).
fn rank<T: Copy>(sorted: &[T], fraction: f64) -> Option<T> {
    let rank = (fraction * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}

/// One value per round, with a summary.
#[derive(Debug, Clone, Serialize)]
pub struct Rounds {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: Vec<f64>,
}

impl Rounds {
    /// `None` without values.
    pub fn of(rounds: Vec<f64>) -> Option<Self> {
        let mut sorted = rounds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self {
            median,
            min,
            max,
            rounds,
        })
    }

    /// Standard error of the median, for a distribution that is normal in its middle, whatever its tails are like.
    pub fn error_of_median(&self) -> f64 {
        // Of a normal distribution, the standard deviation as a multiple of the median deviation, and the standard
        // error of the median as a multiple of that of the mean.
        const DEVIATION: f64 = 1.4826;
        const MEDIAN: f64 = 1.2533;
        let off = self.rounds.iter().map(|of| (of - self.median).abs());
        let off = Self::of(off.collect()).map_or(0.0, |of| of.median);
        MEDIAN * DEVIATION * off / (self.rounds.len() as f64).sqrt()
    }

    /// Range of the rounds, as a fraction of their median.
    pub fn spread(&self) -> f64 {
        (self.max - self.min) / self.median
    }

    /// The ratio of two sides, per round.
    pub fn ratio(ours: &Self, theirs: &Self) -> Option<Self> {
        let pairs = ours.rounds.iter().zip(&theirs.rounds);
        Self::of(pairs.map(|(a, b)| a / b).collect())
    }
}
