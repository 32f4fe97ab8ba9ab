//! Explains JSON that does not fit a message: the first value that its field cannot hold, and what the field accepts.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value as Json};

use super::route::resolve;

/// Bytes of a value quoted in an error.
const SHOWN: usize = 64;

/// A value that its field cannot hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path from the message, in the given spelling and with dots; empty for the message itself.
    pub path: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// The first value in `json` that does not fit `message`.
pub fn of_message(message: &MessageDescriptor, json: &Json) -> Option<Fault> {
    let Json::Object(object) = json else {
        let what = format!("{} is not an object with {}", shown(json), fields(message));
        return here(what);
    };
    object.iter().find_map(|(name, value)| {
        let Some(field) = field(message, name) else {
            return here(format!(
                "there is no field {name:?}: {} has {}",
                message.name(),
                fields(message)
            ));
        };
        in_oneof(message, &field, object).or_else(|| under(name, of_field(&field, value)))
    })
}

/// The fault of a field's value, if any.
pub fn of_field(field: &FieldDescriptor, json: &Json) -> Option<Fault> {
    match json {
        Json::Null => None,
        Json::Array(items) if field.is_list() => items
            .iter()
            .enumerate()
            .find_map(|(at, item)| under(&at.to_string(), of_kind(&field.kind(), item))),
        _ if field.is_list() => here(format!("{} is not a list", shown(json))),
        _ if field.is_map() => None,
        _ => of_kind(&field.kind(), json),
    }
}

fn of_kind(kind: &Kind, json: &Json) -> Option<Fault> {
    match kind {
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Int32Value" => whole(json, i32::MIN.into(), i32::MAX.into()),
            "google.protobuf.UInt32Value" => whole(json, 0, u32::MAX.into()),
            "google.protobuf.BoolValue" => boolean(json),
            name if name.starts_with("google.protobuf.") => None,
            _ => of_message(message, json),
        },
        Kind::Enum(values) => of_enum(values, json),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            whole(json, i32::MIN.into(), i32::MAX.into())
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            whole(json, i64::MIN.into(), i64::MAX.into())
        }
        Kind::Uint32 | Kind::Fixed32 => whole(json, 0, u32::MAX.into()),
        Kind::Uint64 | Kind::Fixed64 => whole(json, 0, u64::MAX.into()),
        Kind::Bool => boolean(json),
        Kind::String => match json {
            Json::String(_) => None,
            _ => here(format!("{} is not a text: write it in quotes", shown(json))),
        },
        Kind::Bytes => match json.as_str() {
            Some(text) if is_base64(text) => None,
            // The value is not quoted: it may be a key.
            Some(_) => here("the text is not base64".to_owned()),
            None => here("it is not a text in base64".to_owned()),
        },
        Kind::Double | Kind::Float => match json {
            Json::Number(_) | Json::String(_) => None,
            _ => here(format!("{} is not a number", shown(json))),
        },
    }
}

/// Checks an integer, given as a number or a string.
fn whole(json: &Json, least: i128, most: i128) -> Option<Fault> {
    let number = match json {
        Json::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 => Some(float as i128),
            _ => number.as_i128(),
        },
        Json::String(text) => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if (least..=most).contains(&number) => None,
        _ => here(format!(
            "{} is not a whole number from {least} to {most}",
            shown(json)
        )),
    }
}

fn boolean(json: &Json) -> Option<Fault> {
    match json {
        Json::Bool(_) => None,
        _ => here(format!("{} is neither true nor false", shown(json))),
    }
}

fn of_enum(values: &EnumDescriptor, json: &Json) -> Option<Fault> {
    let known = match json {
        Json::String(name) => values.get_value_by_name(name).is_some(),
        Json::Number(number) => number
            .as_i64()
            .and_then(|n| i32::try_from(n).ok())
            .is_some(),
        _ => false,
    };
    if known {
        return None;
    }
    let names: Vec<String> = values
        .values()
        .map(|value| value.name().to_owned())
        .collect();
    here(format!(
        "{} is not a value of {}: {}",
        shown(json),
        values.name(),
        names.join(", ")
    ))
}

/// Whether another field of the same oneof is set too.
fn in_oneof(
    message: &MessageDescriptor,
    field: &FieldDescriptor,
    object: &Map<String, Json>,
) -> Option<Fault> {
    let oneof = field.containing_oneof()?;
    let set = object.iter().filter(|(_, value)| !value.is_null());
    let members: Vec<&str> = set
        .filter(|(name, _)| {
            let other = self::field(message, name);
            other.is_some_and(|other| other.containing_oneof().as_ref() == Some(&oneof))
        })
        .map(|(name, _)| name.as_str())
        .collect();
    match members.as_slice() {
        [] | [_] => None,
        several => here(format!("only one can be set of {}", several.join(", "))),
    }
}

fn field(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    // Dots separate path parts only in query parameters, not in JSON names.
    let fields = resolve(message, name)
        .ok()
        .filter(|_| !name.contains('.'))?;
    fields.into_iter().next()
}

/// The JSON names of a message's fields, for error messages.
fn fields(message: &MessageDescriptor) -> String {
    let names: Vec<String> = message
        .fields()
        .map(|field| field.json_name().to_owned())
        .collect();
    match names.as_slice() {
        [] => "no fields".to_owned(),
        _ => names.join(", "),
    }
}

fn here(what: String) -> Option<Fault> {
    let path = String::new();
    Some(Fault { path, what })
}

fn under(name: &str, fault: Option<Fault>) -> Option<Fault> {
    let Fault { path, what } = fault?;
    let path = if path.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{path}")
    };
    Some(Fault { path, what })
}

fn is_base64(text: &str) -> bool {
    let text = text.trim_end_matches('=');
    STANDARD_NO_PAD.decode(text).is_ok() || URL_SAFE_NO_PAD.decode(text).is_ok()
}

fn shown(json: &Json) -> String {
    let text = match json {
        Json::Object(_) => "an object".to_owned(),
        Json::Array(_) => "a list".to_owned(),
        other => other.to_string(),
    };
    if text.len() <= SHOWN {
        return text;
    }
    format!("{}...", &text[..text.floor_char_boundary(SHOWN)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage;
    use prost_reflect::ReflectMessage;
    use serde_json::json;

    fn fault<M: ReflectMessage + Default>(json: Json) -> String {
        match of_message(&M::default().descriptor(), &json) {
            Some(Fault { path, what }) => format!("{path}: {what}"),
            None => String::new(),
        }
    }

    #[test]
    fn what_a_field_takes_is_told_with_the_value_that_it_does_not_take() {
        for (json, what) in [
            (
                json!({"blockSize": "many"}),
                "blockSize: \"many\" is not a whole number from -9223372036854775808 to 9223372036854775807",
            ),
            (
                json!({"block_size": 1.5}),
                "block_size: 1.5 is not a whole number from -9223372036854775808 to 9223372036854775807",
            ),
            (
                json!({"uuid": 7}),
                "uuid: 7 is not a text: write it in quotes",
            ),
            (
                json!({"blockCount": 1}),
                ": there is no field \"blockCount\": NullVolume has name, blockSize, blocksCount, uuid",
            ),
            (
                json!([]),
                ": a list is not an object with name, blockSize, blocksCount, uuid",
            ),
            (
                json!({"blockSize": "512", "blocks_count": 1e3, "uuid": null}),
                "",
            ),
        ] {
            assert_eq!(fault::<storage::NullVolume>(json), what);
        }
        let enums = "NVME_TRANSPORT_TYPE_UNSPECIFIED, ";
        for json in [json!("TCP"), json!(true), json!(1u64 << 40)] {
            let shown = json.to_string();
            let told = fault::<storage::NvmeController>(json!({"spec": {"trtype": json}}));
            let begin =
                format!("spec.trtype: {shown} is not a value of NvmeTransportType: {enums}");
            assert!(told.starts_with(&begin), "{told}");
            assert!(told.contains("NVME_TRANSPORT_TYPE_TCP"), "{told}");
        }
        let port = json!({"spec": {"pcieId": {"portId": "3000000000"}}});
        let told = fault::<storage::NvmeController>(port);
        assert_eq!(
            told,
            "spec.pcieId.portId: \"3000000000\" is not a whole number from -2147483648 to 2147483647"
        );
        let both = json!({"spec": {"pcieId": {}, "fabricsId": {}}});
        let told = fault::<storage::NvmeController>(both);
        assert_eq!(told, "spec: only one can be set of fabricsId, pcieId");
    }

    #[test]
    fn a_key_is_not_repeated_in_an_error() {
        let told = fault::<storage::EncryptedVolume>(json!({"key": "s3cret!"}));
        assert_eq!(told, "key: the text is not base64");
        assert_eq!(
            fault::<storage::EncryptedVolume>(json!({"key": "c2VjcmV0"})),
            ""
        );
    }
}
