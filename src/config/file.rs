//! The configuration file, and its errors as one line.

use std::path::Path;

use super::{ConfigError, Settings};

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        file: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// Parses the text of the file.
pub(super) fn parse(path: &Path, text: &str) -> Result<Settings, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Parse {
        file: path.to_owned(),
        reason: one_line(text, &error),
    })
}

/// Formats the parser's error with line number and setting, without its multi-line excerpt.
pub fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    let message = with_suggestion(&message).unwrap_or(message);
    let Some(start) = error.span().map(|span| span.start) else {
        return message;
    };
    let (Some(before), Some(after)) = (text.get(..start), text.get(start..)) else {
        return message;
    };
    let line = before.matches('\n').count() + 1;
    let begin = before.rfind('\n').map_or(0, |at| at + 1);
    let end = after.find('\n').unwrap_or(after.len());
    match text[begin..start + end].split_once('=') {
        // The error is in the value, so the setting is added; an error in the name contains the name already.
        Some((setting, _)) if start > begin + setting.len() => {
            format!("line {line}: {}: {message}", setting.trim())
        }
        _ => format!("line {line}: {message}"),
    }
}

/// Adds to the parser's message what to write instead of the mistake.
fn with_suggestion(message: &str) -> Option<String> {
    let quoted = |after: &str| {
        let rest = message.strip_prefix(after)?;
        rest.split('`').next().map(str::to_owned)
    };
    if let Some(name) = quoted("unknown field `") {
        let right = name.replace('_', "-").to_ascii_lowercase();
        let known = message.contains(&format!("`{right}`")) && right != name;
        return known.then(|| format!("unknown field `{name}`: did you mean `{right}`"));
    }
    let value = ["integer", "floating point", "boolean"]
        .iter()
        .find_map(|kind| quoted(&format!("invalid type: {kind} `")))?;
    message
        .ends_with("expected a string")
        .then(|| format!("{message}: write it in quotes, \"{value}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_with_what_to_write() {
        for (text, what) in [
            (
                "cores = 0",
                "line 1: cores: invalid type: integer `0`, expected a string: write it in quotes, \"0\"",
            ),
            (
                "mem-mib = 256\nsocket-mode = 660",
                "line 2: socket-mode: invalid type: integer `660`, expected a string: write it in quotes, \"660\"",
            ),
            (
                "grpc_addr = \"127.0.0.1:1\"",
                "line 1: unknown field `grpc_addr`: did you mean `grpc-addr`",
            ),
            (
                "mem-mib = \"x\"",
                "line 1: mem-mib: invalid type: string \"x\", expected u32",
            ),
        ] {
            let error = parse(Path::new("f"), text).expect_err(text).to_string();
            assert_eq!(error, format!("configuration file f: {what}"));
        }
        let error = parse(Path::new("f"), "colour = 1")
            .expect_err("no setting")
            .to_string();
        assert!(
            error.contains("line 1: unknown field `colour`, expected one of `grpc-addr`"),
            "{error}"
        );
    }
}
