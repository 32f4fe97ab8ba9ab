//! The chain of hashes through the audit log: each line has a number, the hash of the line before it and its own.
//!
//! ```text
//! {"time":...,"seq":7,"prev":"HASH OF LINE 6","hash":"SHA-256 OF ALL BEFORE THIS FIELD"}
//! ```
//!
//! With a key the last field is `mac`, and all hashes are HMAC-SHA256. What a line was cut to by a full disk or
//! a loss of power stays in the file, and the next line has its length and hash (`cut`).

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

/// A hash of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; HASH_LEN]);

impl Hash {
    /// What the first line of a chain has for the line before it.
    const NONE: Self = Self([0; HASH_LEN]);

    /// Of 64 lower-case hex digits: each hash has one form.
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
        // SHA-256 has these many.
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

/// How lines are hashed.
pub enum Hasher {
    /// SHA-256, which whoever writes the file can compute.
    Plain,
    /// HMAC-SHA256.
    Keyed(hmac::Key),
}

impl Hasher {
    /// With a key, if there is one.
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

    /// The field of a line that has its own hash.
    fn field(&self) -> &'static str {
        if self.is_keyed() { "mac" } else { "hash" }
    }
}

/// The number and the hash of a line: where a chain has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    seq: u64,
    hash: Hash,
}

impl Head {
    /// Of a chain that has no line yet.
    pub(super) const NONE: Self = Self {
        seq: 0,
        hash: Hash::NONE,
    };

    /// The line that follows, made of a JSON object that has a field at least, and the head that it makes.
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

/// A line that has the form of the chain's.
struct Line<'a> {
    /// What its hash is of.
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

    /// The note of what was cut before it, if it has one.
    fn cut(&self) -> Option<(u64, Hash)> {
        const FIELD: &[u8] = br#""cut":{"#;
        // Quotes within texts are escaped, so that only the field looks like it.
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

/// What stands before a hash in quotes, and the hash.
fn ending_with_hash(text: &[u8]) -> Option<(&[u8], Hash)> {
    let text = text.strip_suffix(b"\"")?;
    let (rest, hash) = text.split_at_checked(text.len().checked_sub(2 * HASH_LEN)?)?;
    Some((rest.strip_suffix(b"\"")?, Hash::parse(hash)?))
}

/// What stands between two lines of the chain and is none, without the newline at its end.
pub(super) struct Cut {
    context: Context,
    bytes: u64,
    /// A newline that counts if something follows.
    newline: bool,
}

enum Context {
    Plain(digest::Context),
    Keyed(hmac::Context),
}

/// What a line tells of what was cut before it.
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
