//! Reads the logs of a target.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Target, eventually};

/// How long a line may take to be written on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// The lines of a JSON log; each must be one object.
pub fn lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| {
        let value: Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {line:?}"));
        assert!(value.is_object(), "{line}");
        value
    };
    text.lines().map(parse).collect()
}

/// The line of a call with these texts in it, once it has been written.
pub async fn line(target: &Target, of: &[&str]) -> Value {
    let written = async || {
        let log = target.log();
        let line = log.lines().find(|line| is_of(line, of))?;
        serde_json::from_str(line).ok()
    };
    eventually(&format!("the log tells of {of:?}"), SOON, written).await
}

/// Lines of a file with this text in them, once there are so many.
pub async fn audited(file: &Path, of: &str, count: usize) -> Vec<Value> {
    let written = async || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let found: Vec<&str> = text.lines().filter(|line| line.contains(of)).collect();
        (found.len() >= count).then(|| lines(&found.join("\n")))
    };
    eventually(&format!("the audit log tells of {of:?}"), SOON, written).await
}

fn is_of(line: &str, of: &[&str]) -> bool {
    of.iter().all(|text| line.contains(text))
}
