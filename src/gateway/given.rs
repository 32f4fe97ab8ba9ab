//! Schemas of requests, as strict as the rules that requests are validated with ([`rules`](crate::resource::rules),
//! [`bounds`](crate::resource::bounds)).

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value as Json, json};

use super::schema::Schemas;
use super::{choices, decimal};
use crate::resource::bounds::{self, Bound, CONTROL, Form};
use crate::resource::id;
use crate::resource::rules::{Field, Rules};

/// The call that an object is sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Create: required fields must be present.
    Create,
    /// Update: absent fields keep their value.
    Update,
}

/// The schema of a resource in a request. Added to `schemas` on first use.
pub fn object(schemas: &mut Schemas, message: &MessageDescriptor, purpose: Purpose) -> Json {
    let verb = match purpose {
        Purpose::Create => "Create",
        Purpose::Update => "Update",
    };
    let name = format!("{verb}{}", message.name());
    let rules = Rules::of(message);
    let words = schemas.words_of(&message.parent_file(), message.path());
    let mut schema = Writer {
        schemas,
        kind: message.name(),
        purpose,
    }
    .object("", &rules);
    schema["description"] = Json::from(words);
    schemas.write(&name, schema)
}

/// The schema of a resource ID in a request, in the field of this name. The ID may be absent, for the server to
/// assign.
pub fn id(field: &str) -> Json {
    let mut schema = text(&bounds::ID, false);
    let resource = field.strip_suffix("_id").unwrap_or(field);
    schema["maxLength"] = Json::from(id::longest(resource));
    schema
}

/// The schema of an ID in a path: client-chosen or server-assigned.
pub fn id_in_path() -> Json {
    let (id, uuid) = (
        bounds::ID.pattern,
        "[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}",
    );
    json!({"type": "string", "pattern": format!("^(?:{id}|{uuid})$"), "maxLength": bounds::ID.most})
}

/// The schema of a string without control characters.
pub fn any_text() -> Json {
    json!({"type": "string", "pattern": format!("^{}*$", without_control())})
}

/// The schema of a field mask over a resource: comma-separated paths, or `*`.
pub fn mask(message: &MessageDescriptor) -> Json {
    let mut paths = Vec::new();
    add_paths(&Rules::of(message), "", "", &mut paths);
    let path = format!("(?:{})", paths.join("|"));
    json!({"type": "string", "pattern": format!("^(?:\\*|{path}(?:,{path})*)?$")})
}

fn add_paths(rules: &Rules, snake: &str, camel: &str, paths: &mut Vec<String>) {
    for field in rules.fields() {
        let descriptor = &field.descriptor;
        let (one, other) = (
            format!("{snake}{}", descriptor.name()),
            format!("{camel}{}", descriptor.json_name()),
        );
        if let Some(nested) = &field.nested {
            let inside = |path: &str| format!("{path}\\.");
            add_paths(nested, &inside(&one), &inside(&other), paths);
        }
        if one != other {
            paths.push(other);
        }
        paths.push(one);
    }
}

struct Writer<'a> {
    schemas: &'a mut Schemas,
    kind: &'a str,
    purpose: Purpose,
}

impl Writer<'_> {
    /// `prefix` is the path of the object with a trailing dot; empty for the resource.
    fn object(&mut self, prefix: &str, rules: &Rules) -> Json {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in rules.fields() {
            let name = field.descriptor.json_name();
            let path = format!("{prefix}{}", field.descriptor.name());
            properties.insert(name.to_owned(), self.field(&path, field));
            if field.required && !field.server_side {
                required.push(name.to_owned());
            }
        }
        let mut schema =
            json!({"type": "object", "properties": properties, "additionalProperties": false});
        let members = rules.exclusive();
        if members.len() == 2 {
            let names: Vec<&str> = members.iter().map(FieldDescriptor::json_name).collect();
            schema["not"] = json!({ "required": names });
        }
        if self.purpose == Purpose::Update {
            // An empty object in an update clears all its fields, also required ones, so it must not be empty.
            if !prefix.is_empty() && !required.is_empty() {
                schema["minProperties"] = Json::from(1);
            }
            return schema;
        }
        if !required.is_empty() {
            schema["required"] = Json::from(required);
        }
        if let Some((word, value)) = choices::of(self.kind, prefix.trim_end_matches('.')) {
            schema[word] = value;
        }
        schema
    }

    fn field(&mut self, path: &str, field: &Field) -> Json {
        if field.server_side {
            return self.schemas.property(&field.descriptor);
        }
        let descriptor = &field.descriptor;
        let mut schema = match &field.nested {
            Some(nested) => self.object(&format!("{path}."), nested),
            None => self.value(field),
        };
        let mut words = self.schemas.words_of(
            &descriptor.parent_message().parent_file(),
            descriptor.path(),
        );
        if field.required && self.purpose == Purpose::Create {
            words.push_str("\n\nRequired.");
        }
        schema["description"] = Json::from(words);
        if descriptor.kind().as_message().is_some() && !field.required {
            schema["nullable"] = Json::from(true);
        }
        // As a property of its own, the alias would be a duplicate to client generators.
        if descriptor.name() != descriptor.json_name() {
            schema["x-also"] = Json::from(descriptor.name());
        }
        schema
    }

    fn value(&mut self, field: &Field) -> Json {
        let descriptor = &field.descriptor;
        match descriptor.kind() {
            _ if descriptor.is_list() || descriptor.is_map() => self.schemas.of_kind(descriptor),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => int32(field),
            Kind::Message(wrapper) if wrapper.full_name() == "google.protobuf.Int32Value" => {
                int32(field)
            }
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => int64(field),
            Kind::Enum(values) => {
                let good = |name: &str| match field.bound {
                    Some(Bound::Values(good)) => good.contains(&name),
                    _ => true,
                };
                let names: Vec<String> = values
                    .values()
                    .filter(|value| match value.number() {
                        0 => !field.required,
                        _ => good(value.name()),
                    })
                    .map(|value| value.name().to_owned())
                    .collect();
                json!({"type": "string", "enum": names})
            }
            Kind::String => match field.bound {
                Some(Bound::Text(form)) => text(form, field.required),
                _ if field.required => {
                    json!({"type": "string", "pattern": format!("^{}+$", without_control())})
                }
                _ => any_text(),
            },
            Kind::Bytes => {
                let mut schema = json!({
                    "type": "string",
                    "format": "byte",
                    "pattern": "^(?:[0-9A-Za-z+/]{4})*(?:[0-9A-Za-z+/]{2}==|[0-9A-Za-z+/]{3}=)?$",
                });
                if field.required {
                    schema["minLength"] = Json::from(1);
                }
                schema
            }
            _ => self.schemas.of_kind(descriptor),
        }
    }
}

/// The values of an integer field: a set, or a range.
enum Numbers {
    Among(Vec<i64>),
    Within(i64, i64),
}

fn numbers(field: &Field, least: i64, most: i64) -> Numbers {
    let or_zero = !field.required && !field.descriptor.supports_presence();
    match field.bound {
        Some(Bound::Within(least, most)) if or_zero && least == 1 => Numbers::Within(0, most),
        Some(Bound::Within(least, most)) => Numbers::Within(least, most),
        Some(Bound::Unserved(_)) => Numbers::Within(0, 0),
        Some(Bound::Among(good)) => {
            let zero = (or_zero && !good.contains(&0)).then_some(0);
            Numbers::Among(zero.into_iter().chain(good.iter().copied()).collect())
        }
        _ => Numbers::Within(least, most),
    }
}

fn int32(field: &Field) -> Json {
    match numbers(field, i32::MIN.into(), i32::MAX.into()) {
        Numbers::Among(good) => json!({"type": "integer", "format": "int32", "enum": good}),
        Numbers::Within(least, most) => {
            json!({"type": "integer", "format": "int32", "minimum": least, "maximum": most})
        }
    }
}

/// A 64-bit integer is a string: its bounds are a pattern, and also given as numbers.
fn int64(field: &Field) -> Json {
    match numbers(field, i64::MIN, i64::MAX) {
        Numbers::Among(good) => {
            let good: Vec<String> = good.iter().map(i64::to_string).collect();
            json!({"type": "string", "format": "int64", "enum": good})
        }
        Numbers::Within(least, most) => {
            let or_zero = !field.required && !field.descriptor.supports_presence();
            let zero = if or_zero && least > 0 { "0|" } else { "" };
            json!({
                "type": "string",
                "format": "int64",
                "pattern": format!("^(?:{zero}{})$", decimal::range(least, most)),
                "x-minimum": least.to_string(),
                "x-maximum": most.to_string(),
            })
        }
    }
}

fn text(form: &Form, required: bool) -> Json {
    let or_empty = if required { "" } else { "?" };
    let mut schema = json!({
        "type": "string",
        "pattern": format!("^(?:{}){or_empty}$", form.pattern),
    });
    if form.most < usize::MAX {
        schema["maxLength"] = Json::from(form.most);
    }
    if let Some(never) = form.never {
        schema["not"] = json!({ "pattern": never });
    }
    schema
}

/// Character class without control characters.
fn without_control() -> String {
    CONTROL.replacen('[', "[^", 1)
}
