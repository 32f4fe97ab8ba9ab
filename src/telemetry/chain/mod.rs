//! The hash chain of the audit log: each line has a sequence number, the hash of the previous line and its own hash.
//!
//! ```text
//! {"time":...,"seq":7,"prev":"HASH OF LINE 6","hash":"SHA-256 OF ALL BEFORE THIS FIELD"}
//! ```
//!
//! With a key, the last field is `mac` and all hashes are HMAC-SHA256. A line that a full disk or a power loss has
//! truncated stays in the file; the next line has the length and the hash of the fragment (`cut`).

mod report;
mod tail;
mod verify;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use ring::{digest, hmac};
use serde::Serialize;

use crate::state::StateKey;

pub(super) use tail::Tail;
pub use verify::{Outcome, Verifier};

const HASH_LEN: usize = 32;

/// Hash of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; HASH_LEN]);

impl Hash {
    /// The previous hash in the first line of a chain.
    const NONE: Self = Self([0; HASH_LEN]);

    /// Parses 64 lower-case hex digits. Upper case is refused, so that each hash has one form only.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut hash = [0; HASH_LEN];
        if text.len() != 2 * HASH_LEN {
            return None;
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(hash))
    }

    fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; HASH_LEN];
        // SHA-256 has exactly this length.
        hash.iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        Self(hash)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The hash function of a chain.
pub enum Hasher {
    /// SHA-256, which anyone who can write the file can compute.
    Plain,
    /// HMAC-SHA256.
    Keyed(hmac::Key),
}

impl Hasher {
    /// Keyed if there is a key.
    pub fn new(key: Option<&StateKey>) -> Self {
        match key {
            None => Self::Plain,
            Some(key) => Self::Keyed(hmac::Key::new(hmac::HMAC_SHA256, key.bytes())),
        }
    }

    fn is_keyed(&self) -> bool {
        matches!(self, Self::Keyed(_))
    }

    fn hash(&self, bytes: &[u8]) -> Hash {
        match self {
            Self::Plain => Hash::of(digest::digest(&digest::SHA256, bytes).as_ref()),
            Self::Keyed(key) => Hash::of(hmac::sign(key, bytes).as_ref()),
        }
    }

    /// Name of the field with a line's own hash.
    fn field(&self) -> &'static str {
        if self.is_keyed() { "mac" } else { "hash" }
    }
}

/// Sequence number and hash of a chain's last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    seq: u64,
    hash: Hash,
}

impl Head {
    /// The head of an empty chain.
    pub(super) const NONE: Self = Self {
        seq: 0,
        hash: Hash::NONE,
    };

    /// Whether a chain that ends with `end` lacks this line: it is shorter, or its last line is another one.
    pub(super) fn is_missing_in(self, end: Self) -> bool {
        self.seq > end.seq || self.seq == end.seq && self.hash != end.hash
    }

    /// Whether this is the line before the one of this number, which has this hash for it.
    pub(super) fn is_before(self, seq: u64, prev: Hash) -> bool {
        self.seq.checked_add(1) == Some(seq) && self.hash == prev
    }

    /// Number of the last line; 0 for an empty chain.
    pub(super) fn seq(self) -> u64 {
        self.seq
    }

    /// Makes the next line from a JSON object with one field or more. Returns the line and the new head.
    pub(super) fn seal(self, hasher: &Hasher, object: &str) -> (String, Self) {
        let seq = self.seq.saturating_add(1);
        let object = object.strip_suffix('}').unwrap_or(object);
        let mut line = format!(r#"{object},"seq":{seq},"prev":"{}""#, self.hash);
        let hash = hasher.hash(line.as_bytes());
        line.push_str(&format!(r#","{}":"{hash}"}}"#, hasher.field()));
        (line, Self { seq, hash })
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':');
        let head = parts.and_then(|(seq, hash)| {
            Some(Self {
                seq: seq.parse().ok()?,
                hash: Hash::parse(hash.as_bytes())?,
            })
        });
        head.ok_or_else(|| "NUMBER:HASH is needed, as audit verify prints it".to_owned())
    }
}

/// A line in the chain's format.
struct Line<'a> {
    /// The bytes that its hash covers.
    hashed: &'a [u8],
    seq: u64,
    prev: Hash,
    hash: Hash,
    keyed: bool,
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let (rest, hash) = ending_with_hash(line.strip_suffix(b"}")?)?;
        let (hashed, keyed) = match rest.strip_suffix(br#","hash":"#) {
            Some(hashed) => (hashed, false),
            None => (rest.strip_suffix(br#","mac":"#)?, true),
        };
        let (rest, prev) = ending_with_hash(hashed)?;
        let rest = rest.strip_suffix(br#","prev":"#)?;
        let digits = rest.iter().rev().take_while(|b| b.is_ascii_digit()).count();
        let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(digits)?)?;
        if !rest.ends_with(br#","seq":"#) || !rest.starts_with(b"{") || digits.starts_with(b"0") {
            return None;
        }
        let seq = std::str::from_utf8(digits).ok()?.parse().ok()?;
        Some(Self {
            hashed,
            seq,
            prev,
            hash,
            keyed,
        })
    }

    fn head(&self) -> Head {
        Head {
            seq: self.seq,
            hash: self.hash,
        }
    }

    /// Whether a file may start with the line: it is the first of its chain, or says that its file begins (`begins`).
    fn begins_file(&self) -> bool {
        const FIELD: &[u8] = br#","begins":true"#;
        // Quotes in strings are escaped, so only the field itself matches.
        self.seq == 1 || self.hashed.windows(FIELD.len()).any(|part| part == FIELD)
    }

    /// The length and hash of the fragment before the line, if the line has such a note.
    fn cut(&self) -> Option<(u64, Hash)> {
        const FIELD: &[u8] = br#""cut":{"#;
        // Quotes in strings are escaped, so only the field itself matches.
        if !self.hashed.windows(FIELD.len()).any(|part| part == FIELD) {
            return None;
        }
        let object = [self.hashed, b"}"].concat();
        let object: serde_json::Value = serde_json::from_slice(&object).ok()?;
        let cut = object.get("cut")?;
        let hash = cut.get("hash")?.as_str()?;
        Some((cut.get("bytes")?.as_u64()?, Hash::parse(hash.as_bytes())?))
    }
}

/// Splits off a quoted hash at the end.
fn ending_with_hash(text: &[u8]) -> Option<(&[u8], Hash)> {
    let text = text.strip_suffix(b"\"")?;
    let (rest, hash) = text.split_at_checked(text.len().checked_sub(2 * HASH_LEN)?)?;
    Some((rest.strip_suffix(b"\"")?, Hash::parse(hash)?))
}

/// Bytes between two lines of the chain, without the newline at their end.
pub(super) struct Cut {
    context: Context,
    bytes: u64,
    /// A newline that is counted only if more bytes follow.
    newline: bool,
}

enum Context {
    Plain(digest::Context),
    Keyed(hmac::Context),
}

/// The note of a fragment.
#[derive(Serialize)]
pub(super) struct CutNote {
    bytes: u64,
    hash: Hash,
}

impl Cut {
    pub(super) fn new(hasher: &Hasher) -> Self {
        let context = match hasher {
            Hasher::Plain => Context::Plain(digest::Context::new(&digest::SHA256)),
            Hasher::Keyed(key) => Context::Keyed(hmac::Context::with_key(key)),
        };
        Self {
            context,
            bytes: 0,
            newline: false,
        }
    }

    pub(super) fn add(&mut self, part: &[u8]) {
        if part.is_empty() {
            return;
        }
        if self.newline {
            self.update(b"\n");
        }
        let stripped = part.strip_suffix(b"\n");
        self.newline = stripped.is_some();
        self.update(stripped.unwrap_or(part));
    }

    fn update(&mut self, part: &[u8]) {
        match &mut self.context {
            Context::Plain(context) => context.update(part),
            Context::Keyed(context) => context.update(part),
        }
        self.bytes = self.bytes.saturating_add(part.len() as u64);
    }

    pub(super) fn note(&self) -> CutNote {
        let hash = match &self.context {
            Context::Plain(context) => Hash::of(context.clone().finish().as_ref()),
            Context::Keyed(context) => Hash::of(context.clone().sign().as_ref()),
        };
        CutNote {
            bytes: self.bytes,
            hash,
        }
    }
}
