//! Verifies the hash chain of an audit log.

use std::io::{self, BufRead, Read};

use serde::de::IgnoredAny;

use super::report::{lines, report};
use super::{Cut, Hash, Hasher, Head, Line};

/// Maximum length of a line, in bytes; the program writes a few KiB.
const LINE_MAX: u64 = 1 << 20;

/// Number of faults after which verification gives up.
const FAULTS: usize = 1000;

/// Position of a line: file and line number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) line: u64,
}

/// A run of consecutive lines of the chain.
pub(super) struct Section {
    pub(super) first: Place,
    pub(super) last: Place,
    pub(super) from: u64,
    pub(super) prev: Hash,
    pub(super) to: Head,
    /// Lines right before the section that are not of the chain.
    pub(super) strange: Vec<Strange>,
    /// Whether a file may start with its first line.
    pub(super) begins_file: bool,
    last_prev: Hash,
}

impl Section {
    fn new(line: &Line<'_>, place: Place, strange: Vec<Strange>) -> Self {
        Self {
            first: place,
            last: place,
            from: line.seq,
            prev: line.prev,
            to: line.head(),
            strange,
            begins_file: line.begins_file(),
            last_prev: line.prev,
        }
    }

    /// Whether it can be the start of a chain.
    pub(super) fn begins(&self) -> bool {
        self.from == 1 && self.prev == Hash::NONE
    }

    fn is_followed_by(&self, line: &Line<'_>) -> bool {
        self.to.seq.checked_add(1) == Some(line.seq) && line.prev == self.to.hash
    }
}

/// Why a line is not of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It does not have the chain's format.
    Form,
    /// Its hash does not match its content.
    Hash,
    /// It has a hash without key, in a chain with a key.
    NoKey,
    /// It is the end of the log, without a newline, and could be a part of a line.
    Cut,
}

/// A line that is not of the chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strange {
    pub(super) place: Place,
    pub(super) why: Why,
    /// Whether it can be what is left of a line of the writer, which no complete JSON value is.
    is_part: bool,
}

/// A fault and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub(super) place: Place,
    pub(super) text: String,
}

/// Result of a verification.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One line per finding: file, line and fault.
    pub findings: Vec<String>,
    /// Remarks on a log without findings.
    pub notes: Vec<String>,
    /// Number of lines of the chain.
    pub lines: u64,
    /// First sequence number; last sequence number and hash.
    pub range: Option<(u64, Head)>,
}

/// A line that must be present.
struct Wanted {
    head: Head,
    /// Where it is known from.
    source: String,
    /// Whether it was the last line of the log.
    is_last: bool,
    found: bool,
}

/// Verifies files, which are read in order, oldest first.
pub struct Verifier {
    hasher: Hasher,
    wanted: Vec<Wanted>,
    names: Vec<String>,
    sections: Vec<Section>,
    strange: Vec<Strange>,
    findings: Vec<Finding>,
    /// All bytes since the last line of the chain.
    between: Cut,
    /// The last line has no newline.
    unfinished: bool,
    lines: u64,
}

impl Verifier {
    /// Creates a verifier. `kept` is a line that must be present.
    pub fn new(hasher: Hasher, kept: Option<Head>) -> Self {
        let kept = kept.map(|head| Wanted {
            head,
            source: "--kept".to_owned(),
            is_last: false,
            found: false,
        });
        Self {
            between: Cut::new(&hasher),
            hasher,
            wanted: kept.into_iter().collect(),
            names: Vec::new(),
            sections: Vec::new(),
            strange: Vec::new(),
            findings: Vec::new(),
            unfinished: false,
            lines: 0,
        }
    }

    /// Requires that the log reaches this line, which `source` has for its last one. Lines may follow it.
    pub fn reaches(&mut self, head: Head, source: &str) {
        self.wanted.push(Wanted {
            head,
            source: source.to_owned(),
            is_last: true,
            found: head == Head::NONE,
        });
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or has too many faults to judge.
    pub fn read(&mut self, name: &str, mut from: impl BufRead) -> Result<(), String> {
        let file = self.names.len();
        self.names.push(name.to_owned());
        let mut number = 1;
        let mut text = Vec::new();
        loop {
            text.clear();
            if next(&mut from, &mut text).map_err(|error| format!("{name}: {error}"))? == 0 {
                return Ok(());
            }
            let place = Place { file, line: number };
            self.line(place, &text)
                .map_err(|reason| format!("{name}:{number}: {reason}"))?;
            if text.ends_with(b"\n") {
                number += 1;
            }
        }
    }

    fn line(&mut self, place: Place, text: &[u8]) -> Result<(), String> {
        let stripped = text.strip_suffix(b"\n");
        self.unfinished = stripped.is_none();
        let Some(line) = Line::parse(stripped.unwrap_or(text)) else {
            return self.strange(place, text, Why::Form);
        };
        if line.keyed && !self.hasher.is_keyed() {
            return Err("the chain has a key: --audit-key-file FILE is needed".to_owned());
        }
        if line.keyed != self.hasher.is_keyed() {
            return self.strange(place, text, Why::NoKey);
        }
        if self.hasher.hash(line.hashed) != line.hash {
            return self.strange(place, text, Why::Hash);
        }
        self.chained(place, &line)
    }

    fn strange(&mut self, place: Place, text: &[u8], why: Why) -> Result<(), String> {
        self.between.add(text);
        let known = self.strange.last().map(|strange| strange.place);
        // Another piece of an overlong line.
        if known != Some(place) {
            let is_part = why == Why::Form && !is_json(text);
            self.strange.push(Strange {
                place,
                why,
                is_part,
            });
        }
        self.bounded(self.strange.len())
    }

    fn bounded(&self, more: usize) -> Result<(), String> {
        let faults = self.sections.len() + self.findings.len() + more;
        if faults > FAULTS {
            return Err(format!(
                "there are more than {FAULTS} faults up to here: this is no audit log, or little is left of it"
            ));
        }
        Ok(())
    }

    fn chained(&mut self, place: Place, line: &Line<'_>) -> Result<(), String> {
        self.lines += 1;
        self.cut_before(place, line);
        self.between = Cut::new(&self.hasher);
        let is_first = self.sections.is_empty();
        for wanted in &mut self.wanted {
            wanted.found |= wanted.head == line.head();
            // The files begin right after it.
            wanted.found |= is_first && wanted.head.is_before(line.seq, line.prev);
        }
        let strange = std::mem::take(&mut self.strange);
        match self.sections.last_mut() {
            Some(section) if section.is_followed_by(line) => {
                section.last_prev = line.prev;
                section.to = line.head();
                section.last = place;
                for Strange { place, why, .. } in strange {
                    let text = match why {
                        Why::NoKey => {
                            "was written without the key, and the chain goes on without it: it was added"
                        }
                        _ => "is no line of the chain, which goes on without it: it was added",
                    };
                    self.findings.push(Finding {
                        place,
                        text: text.to_owned(),
                    });
                }
            }
            Some(section) => {
                // Two lines with the same number and predecessor: the lines that follow decide between them.
                if section.from < section.to.seq
                    && (line.seq, line.prev) == (section.to.seq, section.last_prev)
                {
                    let twin = Section {
                        first: section.last,
                        last: section.last,
                        from: line.seq,
                        prev: line.prev,
                        to: section.to,
                        strange: Vec::new(),
                        begins_file: false,
                        last_prev: line.prev,
                    };
                    section.to = Head {
                        seq: line.seq.saturating_sub(1),
                        hash: line.prev,
                    };
                    self.sections.push(twin);
                }
                self.sections.push(Section::new(line, place, strange));
            }
            None => self.sections.push(Section::new(line, place, strange)),
        }
        self.bounded(0)
    }

    /// Checks the bytes before a line against its note of a fragment.
    fn cut_before(&mut self, place: Place, line: &Line<'_>) {
        let Some((bytes, hash)) = line.cut() else {
            return;
        };
        let between = self.between.note();
        if (bytes, hash) == (between.bytes, between.hash) {
            // The writer tells of all that it finds after the last line, added lines included.
            self.strange.retain(|strange| !strange.is_part);
        } else if !self.sections.is_empty() {
            self.findings.push(Finding {
                place,
                text: format!(
                    "tells of a cut line of {bytes} bytes, and what stands before it is not that: it was changed \
                     or taken out"
                ),
            });
            // Reported as a whole.
            self.strange.clear();
        }
    }

    /// Concludes over all files.
    pub fn finish(mut self) -> Outcome {
        let mut outcome = Outcome {
            lines: self.lines,
            ..Outcome::default()
        };
        if self.unfinished {
            let parts = self.strange.iter_mut().filter(|strange| strange.is_part);
            parts.for_each(|part| part.why = Why::Cut);
        }
        let kept = self.wanted.iter().find(|wanted| !wanted.is_last);
        let kept = kept.map(|wanted| wanted.head);
        outcome.range = report(&self.sections, &self.strange, kept, &mut self.findings);
        self.report_wanted(outcome.range.map_or(0, |(_, last)| last.seq));
        if let Some((from @ 2.., _)) = outcome.range {
            outcome.notes.push(format!(
                "lines before {from} are not in these files, and nothing is known of them"
            ));
        }
        self.findings.sort_by_key(|finding| finding.place);
        let name = |place: Place| self.names.get(place.file).map_or("", String::as_str);
        outcome.findings = (self.findings.iter())
            .map(|Finding { place, text }| format!("{}:{}: {text}", name(*place), place.line))
            .collect();
        outcome
    }

    /// Reports the lines that must be present and are not; `last` is the number of the last line.
    fn report_wanted(&mut self, last: u64) {
        let end = Place {
            file: self.names.len().saturating_sub(1),
            line: 0,
        };
        let place = self.sections.last().map_or(end, |section| section.last);
        // Without any line of the chain, as with another key, its end is not known.
        let is_other = self.sections.is_empty() && !self.strange.is_empty();
        for wanted in self.wanted.iter().filter(|wanted| !wanted.found) {
            if wanted.is_last && is_other {
                continue;
            }
            let (seq, source) = (wanted.head.seq, &wanted.source);
            let text = if wanted.is_last && seq > last {
                format!(
                    "{}: missing at the end ({} in all): {source} has a later line",
                    lines(last + 1, seq),
                    seq - last
                )
            } else {
                format!(
                    "line {seq} with the hash of {source} is nowhere: it was changed or taken out, or its file is \
                     missing"
                )
            };
            self.findings.push(Finding { place, text });
        }
    }
}

/// Whether a line is a complete JSON value.
fn is_json(line: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(line).is_ok()
}

/// Reads the next line with its newline, or a piece of an overlong line.
fn next(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    from.by_ref().take(LINE_MAX).read_until(b'\n', line)
}
