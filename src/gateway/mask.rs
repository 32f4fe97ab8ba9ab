//! Field masks: the fields that an update changes.

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};
use serde_json::{Map, Value as Json};

use super::route::resolve;
use super::template::Captures;

/// Full name of the mask message.
pub const KIND: &str = "google.protobuf.FieldMask";

/// Parses a mask: comma-separated paths, in snake_case or lowerCamelCase.
pub fn parse(kind: &MessageDescriptor, text: &str) -> DynamicMessage {
    let paths = text.split(',').map(|path| snake_case(path.trim()));
    of(kind, paths.filter(|path| !path.is_empty()))
}

fn of(kind: &MessageDescriptor, paths: impl Iterator<Item = String>) -> DynamicMessage {
    let mut mask = DynamicMessage::new(kind.clone());
    mask.set_field_by_name("paths", Value::List(paths.map(Value::String).collect()));
    mask
}

/// Converts `spec.modelNumber` to `spec.model_number`; snake_case stays unchanged.
fn snake_case(path: &str) -> String {
    let mut snake = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// Sets the mask of a PATCH without one to the fields named by its body. Excluded are the name, which the path gives,
/// and empty keys beside other fields: responses have empty keys in place of the real ones, and echoing them must not
/// delete keys.
pub fn complete(
    message: &mut DynamicMessage,
    body_field: &FieldDescriptor,
    captures: &Captures,
    body: &Json,
) {
    let fields = message
        .descriptor()
        .fields()
        .find_map(|field| match field.kind() {
            Kind::Message(kind) if kind.full_name() == KIND && !field.is_list() => {
                Some((field, kind))
            }
            _ => None,
        });
    let Some((field, kind)) = fields else {
        return;
    };
    let given = message.get_field(&field);
    let given = given
        .as_message()
        .is_some_and(|mask| mask.has_field_by_name("paths"));
    let (Kind::Message(inside), Json::Object(object)) = (body_field.kind(), body) else {
        return;
    };
    if given {
        return;
    }
    let mut found = Named::default();
    found.all_in(&inside, object, "");
    let by_path = |path: &String| {
        let full = format!("{}.{path}", body_field.name());
        captures.iter().any(|(captured, _)| *captured == full)
    };
    let mut paths = found.fields;
    paths.retain(|path| !by_path(path));
    if paths.is_empty() {
        paths = found.empty_keys;
    }
    message.set_field(&field, Value::Message(of(&kind, paths.into_iter())));
}

/// The fields named by a JSON object; empty keys only if nothing else is named.
pub fn named(message: &MessageDescriptor, json: &Json) -> Vec<String> {
    let Json::Object(object) = json else {
        return Vec::new();
    };
    let mut found = Named::default();
    found.all_in(message, object, "");
    match found.fields.iter().any(|path| path != "name") {
        true => found.fields,
        false => found.empty_keys,
    }
}

/// Collects the paths of the fields named by a JSON object.
#[derive(Default)]
struct Named {
    fields: Vec<String>,
    empty_keys: Vec<String>,
}

impl Named {
    /// Descends into messages, except empty ones (which mean the whole message) and well-known protobuf types.
    fn all_in(&mut self, message: &MessageDescriptor, object: &Map<String, Json>, prefix: &str) {
        for (name, value) in object {
            let Ok(fields) = resolve(message, name) else {
                continue;
            };
            let Some(field) = fields.first() else {
                continue;
            };
            let path = format!("{prefix}{}", field.name());
            match (field.kind(), value) {
                (Kind::Message(inside), Json::Object(object))
                    if !object.is_empty()
                        && !field.is_map()
                        && inside.package_name() != "google.protobuf" =>
                {
                    self.all_in(&inside, object, &format!("{path}."));
                }
                // All bytes fields of this API are keys.
                (Kind::Bytes, Json::String(empty)) if empty.is_empty() => {
                    self.empty_keys.push(path);
                }
                _ => self.fields.push(path),
            }
        }
    }
}
