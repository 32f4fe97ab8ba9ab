//! Random requests, generated from the API's descriptors.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Value as Json, json};

/// A deterministic pseudorandom number generator (xorshift); the field is the seed.
pub struct Random(pub u64);

impl Random {
    /// Returns a number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    /// Returns true with probability 1/n.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Returns JSON that may or may not be valid for `message`.
    pub fn message(&mut self, message: &MessageDescriptor, depth: usize) -> Json {
        let mut object = serde_json::Map::new();
        for field in message.fields() {
            if self.one_in(2) {
                continue;
            }
            let name = match self.below(20) {
                0 => "unknown".to_owned(),
                1..10 => field.name().to_owned(),
                _ => field.json_name().to_owned(),
            };
            let value = match self.below(8) {
                0 => self.anything(3),
                _ => self.field(&field, depth),
            };
            object.insert(name, value);
        }
        Json::Object(object)
    }

    /// Returns a value that may or may not be valid for `field`.
    pub fn field(&mut self, field: &FieldDescriptor, depth: usize) -> Json {
        match field.kind() {
            Kind::Message(inside) if depth > 0 => self.message(&inside, depth - 1),
            Kind::Enum(values) => {
                let known = values.values().count();
                match values.values().nth(self.below(known + 1)) {
                    Some(value) => json!(value.name()),
                    None => json!(self.below(100)),
                }
            }
            Kind::String => json!("a".repeat(self.below(70))),
            Kind::Bytes => json!("AAAA".repeat(self.below(20))),
            Kind::Bool => json!(self.one_in(2)),
            _ => match self.below(4) {
                0 => json!(i64::MIN + self.below(1 << 40) as i64),
                1 => json!((u64::MAX - self.below(1000) as u64).to_string()),
                2 => json!(1e300),
                _ => json!(self.below(1 << 20)),
            },
        }
    }

    /// Returns arbitrary JSON, nested at most `depth` deep.
    pub fn anything(&mut self, depth: usize) -> Json {
        match self.below(if depth == 0 { 5 } else { 7 }) {
            0 => Json::Null,
            1 => json!(self.one_in(2)),
            2 => json!(-1.5e-7),
            3 => json!("\u{0}\u{1F600}\u{202E}{}[]\"\\"),
            4 => json!(u64::MAX),
            5 => json!([self.anything(depth - 1), self.anything(depth - 1)]),
            _ => json!({"name": self.anything(depth - 1), "": self.anything(depth - 1)}),
        }
    }

    /// Overwrites, truncates or duplicates bytes at random.
    pub fn damage(&mut self, mut text: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.below(4) {
            if text.is_empty() {
                break;
            }
            let at = self.below(text.len());
            match self.below(3) {
                0 => text[at] = self.below(256) as u8,
                1 => text.truncate(at),
                _ => text.extend_from_within(at..),
            }
        }
        text
    }

    /// Returns a random URL path segment.
    pub fn segment(&mut self) -> &'static str {
        const SEGMENTS: [&str; 9] = [
            "a",
            "a:b",
            "%20",
            "%2F",
            "%00",
            "..",
            "*",
            "%F0%9F%98%80",
            "{a}",
        ];
        SEGMENTS[self.below(SEGMENTS.len())]
    }
}
