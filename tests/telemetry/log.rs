//! Reads a target's log and audit log.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Target, eventually};

/// Deadline for a line to be written on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Parses a JSON log; each line must be an object.
pub fn lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| {
        let value: Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {line:?}"));
        assert!(value.is_object(), "{line}");
        value
    };
    text.lines().map(parse).collect()
}

/// Waits for a log line that contains these texts.
pub async fn line(target: &Target, of: &[&str]) -> Value {
    let written = async || {
        let log = target.log();
        let line = log.lines().find(|line| is_of(line, of))?;
        serde_json::from_str(line).ok()
    };
    eventually(&format!("the log has a line with {of:?}"), SOON, written).await
}

/// Waits until `count` lines of the file contain `of`; returns them.
pub async fn audited(file: &Path, of: &str, count: usize) -> Vec<Value> {
    let written = async || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let found: Vec<&str> = text.lines().filter(|line| line.contains(of)).collect();
        (found.len() >= count).then(|| lines(&found.join("\n")))
    };
    eventually(
        &format!("the audit log has lines with {of:?}"),
        SOON,
        written,
    )
    .await
}

fn is_of(line: &str, of: &[&str]) -> bool {
    of.iter().all(|text| line.contains(text))
}
