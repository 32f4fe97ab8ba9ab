//! QMP messages: one JSON object per line.
//!
//! QEMU sends a greeting, and accepts commands after `qmp_capabilities`. An answer repeats its command's ID. Events
//! arrive at any time between answers.

use serde::Deserialize;
use serde_json::{Value, json};

/// QEMU's greeting, `{"QMP": {...}}`.
#[derive(Debug, Deserialize)]
pub(super) struct Greeting {
    #[serde(rename = "QMP")]
    qmp: Monitor,
}

#[derive(Debug, Deserialize)]
struct Monitor {
    version: Package,
}

#[derive(Debug, Deserialize)]
struct Package {
    qemu: Version,
}

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Version {
    /// Whether `device_del` of a vfio-user device crashes it: stock QEMU 11.1 fails an assertion then (3 of 3 tries
    /// with 11.1.3).
    pub(super) fn ends_of_vfio_user_unplug(self) -> bool {
        (self.major, self.minor) == (11, 1)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Greeting {
    /// Parses the first line. The error says what is wrong with it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| not_qmp(line, &error))
    }

    /// The version of QEMU.
    pub(super) fn version(&self) -> Version {
        self.qmp.version.qemu
    }
}

/// An error of QEMU.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Refusal {
    pub(super) class: String,
    #[serde(rename = "desc")]
    pub(super) description: String,
}

/// An event of the machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

impl Event {
    /// ID of the device that the event is about, if it is about a device with an ID.
    pub(super) fn device(&self) -> Option<&str> {
        self.data["device"].as_str()
    }
}

/// A line from QEMU after the greeting.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The answer to the command of this ID.
    Answer(u64, Result<Value, Refusal>),
    /// An event.
    Event(Event),
}

#[derive(Deserialize)]
struct Line {
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    returned: Option<Value>,
    error: Option<Refusal>,
}

/// Distinguishes a `return` of null, which is an answer, from an absent one.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

impl Message {
    /// Parses a line. The error says what is wrong with it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let line: Line = serde_json::from_str(line).map_err(|error| not_qmp(line, &error))?;
        match line {
            Line {
                event: Some(name),
                data,
                ..
            } => Ok(Self::Event(Event { name, data })),
            Line {
                id: Some(id),
                error: Some(refusal),
                ..
            } => Ok(Self::Answer(id, Err(refusal))),
            Line {
                id: Some(id),
                returned: Some(value),
                ..
            } => Ok(Self::Answer(id, Ok(value))),
            Line {
                error: Some(refusal),
                ..
            } => Err(format!("an error without an id: {}", refusal.description)),
            _ => Err("neither an answer with an id nor an event".to_owned()),
        }
    }
}

/// The error for a line that is not QMP, with its beginning.
fn not_qmp(line: &str, error: &serde_json::Error) -> String {
    let begin: String = line.chars().take(60).collect();
    format!("it sent {begin:?}, which is not QMP: {error}")
}

/// Serializes a command, without the line end.
pub(super) fn command(id: u64, execute: &str, arguments: &Value) -> String {
    let mut command = json!({ "execute": execute, "id": id });
    if !arguments.is_null() {
        command["arguments"] = arguments.clone();
    }
    command.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_answer_an_error_or_an_event() {
        let parse = Message::parse;
        assert_eq!(
            parse(r#"{"return": {"a": 1}, "id": 7}"#),
            Ok(Message::Answer(7, Ok(json!({ "a": 1 }))))
        );
        assert_eq!(
            parse(r#"{"return": null, "id": 7}"#),
            Ok(Message::Answer(7, Ok(Value::Null)))
        );
        let refusal = Refusal {
            class: "GenericError".into(),
            description: "no".into(),
        };
        assert_eq!(
            parse(r#"{"id": 8, "error": {"class": "GenericError", "desc": "no"}}"#),
            Ok(Message::Answer(8, Err(refusal)))
        );
        let line = r#"{"timestamp": {"seconds": 1}, "event": "DEVICE_DELETED", "data": {"device": "x", "path": "/p"}}"#;
        let Ok(Message::Event(event)) = parse(line) else {
            panic!("not an event")
        };
        assert_eq!(
            (event.name.as_str(), event.device()),
            ("DEVICE_DELETED", Some("x"))
        );
    }

    #[test]
    fn what_is_not_qmp_is_said() {
        for (line, problem) in [
            ("hello", "expected value"),
            ("[]", "invalid"),
            ("{}", "neither"),
            (r#"{"return": {}}"#, "neither"),
            (r#"{"return": {}, "id": "x"}"#, "invalid type"),
            (
                r#"{"error": {"class": "GenericError", "desc": "JSON parse error"}}"#,
                "JSON parse error",
            ),
        ] {
            let error = Message::parse(line).expect_err(line);
            assert!(error.contains(problem), "{line}: {error}");
        }
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let line = r#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": "x"}, "capabilities": []}}"#;
        let greeting = Greeting::parse(line).expect("a greeting");
        assert!(greeting.version() > Version { major: 9, minor: 2 });
        assert!(Version { major: 7, minor: 2 } < Version { major: 9, minor: 2 });
    }

    #[test]
    fn a_command_without_arguments_has_none() {
        assert_eq!(
            command(1, "query-pci", &Value::Null),
            r#"{"execute":"query-pci","id":1}"#
        );
    }
}
