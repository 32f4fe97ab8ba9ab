//! Rejects JSON objects with duplicate members, whose meaning is ambiguous.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json};

/// Any JSON without duplicate members; `block_size` and `blockSize` are the same member.
pub struct UniqueKeys(pub Json);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = UniqueKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(Json::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<UniqueKeys, A::Error> {
        let mut list = Vec::new();
        while let Some(UniqueKeys(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(UniqueKeys(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<UniqueKeys, A::Error> {
        let mut seen = HashSet::new();
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if !seen.insert(normalized(&name)) {
                return Err(A::Error::custom(format!("{name:?} is given twice")));
            }
            let UniqueKeys(value) = members.next_value()?;
            object.insert(name, value);
        }
        Ok(UniqueKeys(object.into()))
    }
}

/// Normalizes the two spellings of a name.
fn normalized(name: &str) -> String {
    let letters = name.chars().filter(|letter| *letter != '_');
    letters.map(|letter| letter.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<(), String> {
        let found = serde_json::from_str::<UniqueKeys>(json);
        found.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_member_that_is_given_twice_is_found_with_its_place() {
        for (json, place) in [
            (
                r#"{"a": 1, "a": 1}"#,
                "\"a\" is given twice at line 1 column 12",
            ),
            ("{\"block_size\": 1,\n\"blockSize\": 1}", "line 2 column 11"),
            (
                r#"[{"a": {"b": null, "b": [true]}}]"#,
                "\"b\" is given twice",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(place), "{error}");
        }
        assert_eq!(
            read(r#"{"a": {"a": [1.5, -1, {"a": "a"}]}, "b": {}}"#),
            Ok(())
        );
    }
}
