//! `key=value` arguments: fields of an object, by the names in its descriptor.
//!
//! ```text
//! block_size=512  blockSize=512        snake and camel case
//! spec.nqn=nqn.2016-06.io.spdk:a       into a message
//! trtype=tcp                           an enum's value, without what all of its values begin with
//! hosts=a hosts=b                      a list
//! spec='{"nqn": "..."}'                JSON
//! key=@FILE  key=@-                    what a file, the standard input has: keys do not belong on a command line
//! ```

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind as FieldKind, MessageDescriptor, Value,
};
use serde_json::{Map, Value as Json};

use super::Failure;
use crate::gateway::{fault_of, field_path, set_field};
use crate::interchange;

/// Maximum size, in bytes, of a file that is the value of a field.
const FILE_MAX: u64 = 1 << 20;

/// Sets the fields of the arguments. Returns their paths, for an update mask.
///
/// # Errors
/// [`Failure::Usage`] with the argument, what is wrong and what would be right.
pub(super) fn apply(
    message: &mut DynamicMessage,
    descriptor: &MessageDescriptor,
    arguments: &[String],
) -> Result<Vec<String>, Failure> {
    let mut paths: Vec<String> = Vec::new();
    for argument in arguments {
        let Some((key, text)) = argument.split_once('=') else {
            return Err(Failure::Usage(format!(
                "{argument:?} is no key=value: {} has {}",
                descriptor.name(),
                names(descriptor)
            )));
        };
        let fields = field_path(descriptor, key).map_err(|(part, inside)| {
            let known = inside.map_or_else(
                || "it has no fields".to_owned(),
                |inside| format!("{} has {}", inside.name(), names(&inside)),
            );
            Failure::Usage(format!("{key}: there is no field {part:?}: {known}"))
        })?;
        let Some(field) = fields.last() else { continue };
        let path: Vec<&str> = fields.iter().map(FieldDescriptor::name).collect();
        let path = path.join(".");
        if paths.contains(&path) && !field.is_list() {
            return Err(Failure::Usage(format!("{key} is given twice")));
        }
        let mut value = value(field, text).map_err(|error| match error {
            BadValue::Value(why) => Failure::Usage(format!("{key}: {why}")),
            BadValue::File(why) => Failure::Here(format!("{key}: {why}")),
        })?;
        if let Some(other) = excluded(message, &fields) {
            let what = format!("{key}: only one can be set of it and {other}, which is given too");
            return Err(Failure::Usage(what));
        }
        if let (Some(Value::List(new)), true) = (&mut value, paths.contains(&path)) {
            let mut all = current(message, &fields);
            all.append(new);
            *new = all;
        }
        match value {
            Some(value) => set_field(message, &fields, value),
            // An empty value clears the field: the enclosing message is set, and the mask names the field.
            None => {
                if let [inside @ .., _] = fields.as_slice()
                    && !inside.is_empty()
                {
                    touch(message, inside);
                }
            }
        }
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Why an argument has no value.
enum BadValue {
    Value(String),
    File(String),
}

/// Parses a value. `None` for an empty text, which clears a field that is not a string.
fn value(field: &FieldDescriptor, text: &str) -> Result<Option<Value>, BadValue> {
    let from_file = text.strip_prefix('@').map(read).transpose();
    let content = from_file.map_err(BadValue::File)?;
    if let (Some(bytes), FieldKind::Bytes) = (&content, field.kind()) {
        let bytes = interchange::of_file(bytes).to_vec();
        let value = Value::Bytes(bytes.into());
        return Ok(Some(listed(field, value)));
    }
    let text = match content {
        Some(bytes) => {
            let text = String::from_utf8(bytes);
            let text = text.map_err(|_| BadValue::File("the file is no text".to_owned()))?;
            text.trim_end_matches('\n').to_owned()
        }
        None => text.to_owned(),
    };
    if text.is_empty() && !(field.is_list() && field.kind() == FieldKind::String) {
        return Ok(None);
    }
    let json = json(field, &text).map_err(BadValue::Value)?;
    if let Some(what) = fault_of(field, &json) {
        return Err(BadValue::Value(what));
    }
    let object = Map::from_iter([(field.json_name().to_owned(), json)]);
    let message = DynamicMessage::deserialize(field.parent_message().clone(), Json::Object(object));
    let message = message.map_err(|error| BadValue::Value(format!("{text:?}: {error}")))?;
    Ok(Some(message.get_field(field).into_owned()))
}

fn listed(field: &FieldDescriptor, value: Value) -> Value {
    match field.is_list() {
        true => Value::List(vec![value]),
        false => value,
    }
}

/// The JSON value of a text, by the field's type.
fn json(field: &FieldDescriptor, text: &str) -> Result<Json, String> {
    let is_json = match field.kind() {
        _ if field.is_map() => true,
        _ if field.is_list() && text.starts_with('[') => true,
        FieldKind::Message(_) => text.starts_with('{'),
        _ => false,
    };
    if is_json {
        return serde_json::from_str(text)
            .map_err(|error| format!("{text:?} is not JSON: {error}"));
    }
    let json = match field.kind() {
        FieldKind::Bool => boolean(text),
        FieldKind::Message(message) if message.full_name() == "google.protobuf.BoolValue" => {
            boolean(text)
        }
        FieldKind::Message(message) if message.package_name() != "google.protobuf" => {
            return Err(format!(
                "{} has {}: give these, as {}.FIELD=VALUE, or JSON",
                message.name(),
                names(&message),
                field.name()
            ));
        }
        FieldKind::Enum(values) => of_enum(&values, text),
        FieldKind::Bytes if STANDARD.decode(text).is_err() => {
            // The value is not shown: it may be a key.
            return Err("the value is not base64: give that, or @FILE".to_owned());
        }
        _ => Json::from(text),
    };
    Ok(match field.is_list() {
        true => Json::Array(vec![json]),
        false => json,
    })
}

fn boolean(text: &str) -> Json {
    match text {
        "true" | "yes" | "on" | "1" => Json::Bool(true),
        "false" | "no" | "off" | "0" => Json::Bool(false),
        other => Json::from(other),
    }
}

/// The value of an enum, by number, full name or the name's end: `tcp` is `NVME_TRANSPORT_TYPE_TCP`.
fn of_enum(values: &EnumDescriptor, text: &str) -> Json {
    if let Ok(number) = text.parse::<i32>() {
        return Json::from(number);
    }
    let wanted = text.to_uppercase().replace('-', "_");
    let common = common_prefix(values);
    let named = values.values().find(|value| {
        value.name() == wanted || value.name().strip_prefix(common.as_str()) == Some(&wanted)
    });
    named.map_or_else(|| Json::from(text), |value| Json::from(value.name()))
}

/// The common prefix of the names of all values, up to an underscore.
pub(super) fn common_prefix(values: &EnumDescriptor) -> String {
    let mut names = values.values().map(|value| value.name().to_owned());
    let Some(first) = names.next() else {
        return String::new();
    };
    let shared = names.fold(first.clone(), |shared, name| {
        let same = shared.bytes().zip(name.bytes());
        let length = same.take_while(|(one, other)| one == other).count();
        // Names of enum values are ASCII.
        shared.get(..length).unwrap_or_default().to_owned()
    });
    let end = shared.rfind('_').map_or(0, |at| at + 1);
    first.get(..end).unwrap_or_default().to_owned()
}

fn read(file: &str) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| format!("file {file:?}: {error}");
    let mut content = Vec::new();
    let input = super::file::open(file.as_ref()).map_err(fail)?;
    let read = input.take(FILE_MAX + 1).read_to_end(&mut content);
    read.map_err(fail)?;
    if content.len() as u64 > FILE_MAX {
        return Err(format!("file {file:?} has more than {FILE_MAX} bytes"));
    }
    Ok(content)
}

fn current(message: &DynamicMessage, path: &[FieldDescriptor]) -> Vec<Value> {
    match path {
        [] => Vec::new(),
        [field] => {
            let value = message.get_field(field);
            value.as_list().map(<[Value]>::to_vec).unwrap_or_default()
        }
        [field, rest @ ..] => {
            let value = message.get_field(field);
            let inside = value.as_message();
            inside.map_or_else(Vec::new, |inside| current(inside, rest))
        }
    }
}

/// The name of a set field that shares a oneof with a field on the path.
fn excluded(message: &DynamicMessage, path: &[FieldDescriptor]) -> Option<String> {
    let [field, rest @ ..] = path else {
        return None;
    };
    let members = field.containing_oneof();
    let mut members = members
        .iter()
        .flat_map(|oneof| oneof.fields().collect::<Vec<_>>());
    let other = members.find(|member| member != field && message.has_field(member));
    if let Some(other) = other {
        return Some(other.name().to_owned());
    }
    excluded(message.get_field(field).as_message()?, rest)
}

/// Sets the messages along the path, leaving their fields as they are.
fn touch(message: &mut DynamicMessage, path: &[FieldDescriptor]) {
    if let [field, rest @ ..] = path
        && let Value::Message(inside) = message.get_field_mut(field)
    {
        touch(inside, rest);
    }
}

fn names(message: &MessageDescriptor) -> String {
    let names: Vec<String> = message.fields().map(|field| field.name().into()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::json_of;

    fn of(kind: &str, arguments: &[&str]) -> Result<(Json, Vec<String>), Failure> {
        let kind = super::super::kinds::find(kind).unwrap();
        let mut message = DynamicMessage::new(kind.message.clone());
        let arguments: Vec<String> = arguments.iter().map(|&one| one.to_owned()).collect();
        let paths = apply(&mut message, &kind.message, &arguments)?;
        Ok((json_of(&message).unwrap(), paths))
    }

    #[test]
    fn a_field_is_set_by_its_snake_or_camel_name_and_within_messages() {
        let (json, paths) = of(
            "nvmeController",
            &[
                "spec.trtype=tcp",
                "spec.fabricsId.traddr=127.0.0.1",
                "spec.fabrics_id.adrfam=NVME_ADDRESS_FAMILY_IPV4",
            ],
        )
        .unwrap();
        assert_eq!(json["spec"]["trtype"], "NVME_TRANSPORT_TYPE_TCP");
        assert_eq!(paths[1], "spec.fabrics_id.traddr");
        assert_eq!(
            json["spec"]["fabricsId"]["adrfam"],
            "NVME_ADDRESS_FAMILY_IPV4"
        );
        let both = ["spec.fabrics_id.traddr=127.0.0.1", "spec.pcie_id.port_id=0"];
        let error = of("nvmeController", &both).unwrap_err().to_string();
        assert!(
            error.contains("only one can be set of it and fabrics_id"),
            "{error}"
        );
    }

    #[test]
    fn a_message_is_taken_as_json_too_and_nothing_clears_a_field() {
        let (json, paths) = of("nvmeSubsystem", &[r#"spec={"nqn": "n"}"#]).unwrap();
        assert_eq!(
            (json["spec"]["nqn"].as_str(), &*paths[0]),
            (Some("n"), "spec")
        );
        let (json, paths) = of("nvmeSubsystem", &["spec.hostnqn="]).unwrap();
        assert_eq!(json["spec"]["hostnqn"], "");
        assert_eq!(paths, ["spec.hostnqn"]);
    }

    #[test]
    fn what_is_no_field_or_no_value_is_refused_with_what_would_be() {
        for (kind, argument, told) in [
            ("nullVolume", "blocksize=3", "NullVolume has name, "),
            ("nullVolume", "block_size", "is no key=value"),
            ("nullVolume", "block_size=big", "not a whole number"),
            (
                "nvmeController",
                "spec.trtype=wifi",
                "NVME_TRANSPORT_TYPE_TCP",
            ),
            ("nvmeSubsystem", "spec=3", "give these, as spec.FIELD=VALUE"),
            ("nvmeSubsystem", "spec={", "is not JSON"),
            ("nvmeSubsystem", "spec.psk=@/none", "No such file"),
            ("nvmeSubsystem", "spec.psk=secret!", "is not base64"),
        ] {
            let error = of(kind, &[argument]).unwrap_err().to_string();
            assert!(error.contains(told), "{argument}: {error}");
            assert!(!error.contains("secret!"), "{error}");
        }
        assert!(of("nullVolume", &["block_size=1", "blockSize=2"]).is_err());
    }

    #[test]
    fn a_key_comes_from_a_file_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, [0, 10]).unwrap();
        let argument = format!("key=@{}", file.display());
        let (json, _) = of("encryptedVolume", &[&argument]).unwrap();
        assert_eq!(json["key"], "AAo=");
    }
}
