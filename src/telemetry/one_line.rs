//! One event per line: control characters in external text (names, reasons, SPDK's lines) are escaped when written, so
//! that nothing can forge a log line or steer a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Escape form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Escape {
    /// Text: `\n`, `\u{1b}`.
    Text,
    /// Text with the formatter's colours: its escape sequences pass, and it escapes those in values itself.
    Coloured,
    /// JSON, in which only strings can contain control characters: `\u0085`.
    Json,
}

/// Writes each event to `inner` as one line.
pub(super) struct OneLine<W> {
    inner: W,
    escape: Escape,
}

impl<W> OneLine<W> {
    pub(super) fn new(inner: W, escape: Escape) -> Self {
        Self { inner, escape }
    }
}

impl<W: Write> Write for OneLine<W> {
    /// Writes a whole event, which ends with a newline: the formatter writes each event in one call.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (line, end) = match text.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (&*text, ""),
        };
        match escaped(line, self.escape) {
            Cow::Borrowed(_) => self.inner.write_all(text.as_bytes())?,
            Cow::Owned(line) => self.inner.write_all((line + end).as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Escapes control characters.
pub(super) fn escaped(text: &str, escape: Escape) -> Cow<'_, str> {
    let is_bad = |c: char| c.is_control() && !(escape == Escape::Coloured && c == '\x1b');
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if !is_bad(c) {
            line.push(c);
        } else if escape == Escape::Json {
            // Writing to a String cannot fail.
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.extend(c.escape_default());
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &str, escape: Escape) -> String {
        let mut out = Vec::new();
        let mut writer = OneLine::new(&mut out, escape);
        writer.write_all(event.as_bytes()).expect("a Vec takes all");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        assert_eq!(
            written("a\nb\r\tc\x1b[31m\u{9b}2J\x7f\0é\n", Escape::Text),
            "a\\nb\\r\\tc\\u{1b}[31m\\u{9b}2J\\u{7f}\\u{0}é\n"
        );
        assert_eq!(written("\x1b[2ma\nb\n", Escape::Coloured), "\x1b[2ma\\nb\n");
        assert_eq!(
            written("{\"a\":\"\u{85}\"}\n", Escape::Json),
            "{\"a\":\"\\u0085\"}\n"
        );
        assert_eq!(written("as it is\n", Escape::Text), "as it is\n");
    }
}
