//! Scrapes a target, and parses the metrics as strictly as Prometheus does.

use std::collections::{BTreeMap, BTreeSet};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Target;

/// The Accept header of a scraper that supports OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";

/// Sends a GET; returns status and body.
pub async fn get_text(target: &Target, path: &str, accept: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(target.http).await.expect("connected");
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.expect("a status"), body.to_owned())
}

/// The samples of a scrape.
pub struct Scrape {
    /// Samples by name and labels, as written.
    samples: BTreeMap<String, f64>,
    /// Declared families with their types.
    pub families: BTreeMap<String, String>,
}

impl Scrape {
    /// Scrapes a target's metrics.
    pub async fn of(target: &Target) -> Self {
        let (status, text) = get_text(target, "/metrics", OPEN_METRICS).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        Self::parse(&text, true)
    }

    /// Parses metrics. Every line must be valid, and every sample must belong to the preceding family
    /// and occur once.
    pub fn parse(text: &str, open_metrics: bool) -> Self {
        let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
        let mut current: Option<(String, String)> = None;
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').expect("a name and a type");
                current = Some((name.to_owned(), kind.to_owned()));
                let before = families.insert(name.to_owned(), kind.to_owned());
                assert!(before.is_none(), "family declared twice: {line}");
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let value: f64 = value
                .parse()
                .unwrap_or_else(|_| panic!("no number: {line}"));
            let name = sample.split('{').next().expect("a name");
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
                "{line}"
            );
            check_labels(&sample[name.len()..]);
            let (family, kind) = current.as_ref().expect("a type before the sample");
            let suffixes: &[&str] = match (kind.as_str(), open_metrics) {
                ("counter", true) => &["_total"],
                ("histogram", _) => &["_bucket", "_count", "_sum"],
                _ => &[""],
            };
            let suffix = name.strip_prefix(family.as_str());
            let suffix = suffix.unwrap_or_else(|| panic!("{line} is not of {family}"));
            assert!(suffixes.contains(&suffix), "{line} of a {kind}");
            if kind == "counter" {
                assert!(name.ends_with("_total"), "{line}");
            }
            let before = samples.insert(sample.to_owned(), value);
            assert!(before.is_none(), "sample occurs twice: {line}");
        }
        Self { samples, families }
    }

    /// Returns the only sample of this name that has these labels, among others.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<f64> = self
            .samples
            .iter()
            .filter(|(sample, _)| {
                let rest = sample.strip_prefix(name);
                let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with('{'));
                let has =
                    |(key, value): &(&str, &str)| sample.contains(&format!("{key}=\"{value}\""));
                rest.is_some() && labels.iter().all(has)
            })
            .map(|(_, value)| *value)
            .collect();
        let [value] = found[..] else {
            panic!("{} samples of {name} {labels:?}", found.len());
        };
        value
    }

    /// Returns the samples of control steps longer than 100 us.
    pub fn long_steps(&self) -> Vec<&str> {
        let steps = self.samples.keys();
        let steps = steps.filter_map(|of| of.strip_prefix("opi_spdk_control_long_step_seconds{"));
        steps.collect()
    }

    /// Returns the names of samples, and of families without samples.
    pub fn names(&self) -> BTreeSet<String> {
        let samples = self
            .samples
            .keys()
            .map(|sample| sample.split('{').next().unwrap_or_default().to_owned());
        let empty = self
            .families
            .iter()
            .map(|(name, kind)| match kind.as_str() {
                "counter" => format!("{name}_total"),
                _ => name.clone(),
            });
        samples.chain(empty).collect()
    }
}

/// Checks the labels: `{name="value",...}` or nothing.
fn check_labels(text: &str) {
    if text.is_empty() {
        return;
    }
    let inside = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    let mut rest = inside.unwrap_or_else(|| panic!("no labels: {text}"));
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a name and a value");
        assert!(
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
            "{text}"
        );
        let mut escaped = false;
        let end = after.find(|c| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        });
        rest = &after[end.expect("the end of a value") + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}
