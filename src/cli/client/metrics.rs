//! Parses the Prometheus text format and computes differences between two scrapes.

use std::collections::HashMap;
use std::time::Instant;

/// The samples of a scrape.
pub(super) struct Scrape {
    at: Instant,
    samples: HashMap<String, Vec<Sample>>,
}

/// One value with its labels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    labels: Vec<(String, String)>,
    pub(super) value: f64,
}

impl Sample {
    /// The value of a label.
    pub(super) fn label(&self, name: &str) -> &str {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map_or("", |(_, value)| value)
    }
}

impl Scrape {
    /// Parses a scrape; malformed lines are skipped.
    pub(super) fn parse(text: &str, at: Instant) -> Self {
        let mut samples: HashMap<String, Vec<Sample>> = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((sample, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (name, labels) = match sample.split_once('{') {
                Some((name, rest)) => (name, labels(rest.trim_end_matches('}'))),
                None => (sample, Vec::new()),
            };
            if let Ok(value) = value.parse() {
                let all = samples.entry(name.to_owned()).or_default();
                all.push(Sample { labels, value });
            }
        }
        Self { at, samples }
    }

    /// The samples of a metric.
    pub(super) fn of(&self, metric: &str) -> &[Sample] {
        self.samples.get(metric).map_or(&[], Vec::as_slice)
    }

    /// The values of a metric, summed by one label.
    pub(super) fn by(&self, metric: &str, label: &str) -> HashMap<&str, f64> {
        let mut found = HashMap::new();
        for sample in self.of(metric) {
            *found.entry(sample.label(label)).or_default() += sample.value;
        }
        found
    }

    /// The increase per second of a metric's counters since `before`, by one label. A new or reset counter has no
    /// rate.
    pub(super) fn rates(&self, before: &Self, metric: &str, label: &str) -> HashMap<&str, f64> {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64();
        let old = before.by(metric, label);
        let now = self.by(metric, label).into_iter();
        now.filter_map(|(of, value)| {
            let grown = value - old.get(of)?;
            (seconds > 0.0 && grown >= 0.0).then_some((of, grown / seconds))
        })
        .collect()
    }

    /// The increase of a histogram since `before`, by one label: upper bounds with cumulative counts.
    pub(super) fn grown(
        &self,
        before: &Self,
        metric: &str,
        label: &str,
    ) -> HashMap<&str, Vec<(f64, f64)>> {
        let bound = |sample: &Sample| sample.label("le").parse().unwrap_or(f64::INFINITY);
        let mut old: HashMap<(&str, &str), f64> = HashMap::new();
        for sample in before.of(metric) {
            old.insert((sample.label(label), sample.label("le")), sample.value);
        }
        let mut found: HashMap<&str, Vec<(f64, f64)>> = HashMap::new();
        for sample in self.of(metric) {
            let of = sample.label(label);
            let Some(before) = old.get(&(of, sample.label("le"))) else {
                continue;
            };
            let grown = (sample.value - before).max(0.0);
            found.entry(of).or_default().push((bound(sample), grown));
        }
        for buckets in found.values_mut() {
            buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        }
        found
    }
}

/// Like PromQL's `histogram_quantile`: linear within a bucket. `None` if nothing was counted.
pub(super) fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count)?;
    if all <= 0.0 {
        return None;
    }
    let (mut below, mut under) = (0.0, 0.0);
    for &(bound, count) in buckets {
        if count >= q * all {
            if bound.is_infinite() {
                return Some(below);
            }
            let part = match count > under {
                true => (q * all - under) / (count - under),
                false => 1.0,
            };
            return Some(below + (bound - below) * part);
        }
        (below, under) = (bound, count);
    }
    Some(below)
}

/// Parses `name="value",...` with the format's escapes.
fn labels(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut letters = after.char_indices();
        let mut end = after.len();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, other)) => value.push(other),
                    None => {}
                },
                other => value.push(other),
            }
        }
        found.push((name.trim_start_matches(',').to_owned(), value));
        rest = after.get(end..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const BEFORE: &str = "# TYPE ops counter\nops_total{volume=\"a\\\"b\",bdev=\"x\"} 10\nops_total{volume=\"c\"} 9\n\
        lat_bucket{volume=\"c\",le=\"0.1\"} 0\nlat_bucket{volume=\"c\",le=\"+Inf\"} 0\nnonsense\n";
    const AFTER: &str = "ops_total{volume=\"a\\\"b\",bdev=\"x\"} 30\nops_total{volume=\"c\"} 1\nops_total{volume=\"d\"} 5\n\
        lat_bucket{volume=\"c\",le=\"+Inf\"} 10\nlat_bucket{volume=\"c\",le=\"0.1\"} 10\nup 1.5\n";

    #[test]
    fn rates_are_of_counters_that_went_on() {
        let begin = Instant::now();
        let before = Scrape::parse(BEFORE, begin);
        let after = Scrape::parse(AFTER, begin + Duration::from_secs(2));
        let rates = after.rates(&before, "ops_total", "volume");
        assert_eq!(rates, HashMap::from([("a\"b", 10.0)]));
        assert_eq!(after.of("up")[0].value, 1.5);
        let grown = after.grown(&before, "lat_bucket", "volume");
        assert_eq!(grown["c"], [(0.1, 10.0), (f64::INFINITY, 10.0)]);
        assert_eq!(quantile(&grown["c"], 0.5), Some(0.05));
    }

    #[test]
    fn a_quantile_lies_inside_its_bucket_and_there_is_none_of_nothing() {
        let buckets = [(1.0, 50.0), (2.0, 99.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(1.0));
        assert_eq!(quantile(&buckets, 0.99), Some(2.0));
        assert_eq!(quantile(&buckets, 1.0), Some(2.0), "no bound above");
        assert_eq!(quantile(&[(1.0, 0.0)], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
    }
}
