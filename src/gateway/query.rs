//! Query parameters: request fields in neither the path nor the body.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};
use serde_json::{Map, Value as Json};

use super::explain;
use super::mask;
use super::request::set;
use super::route::{Body, Rule, resolve};
use crate::error::Error;

/// Sets one query parameter: `page_size=3`, `spec.nqn=...`, in snake_case or camelCase.
pub fn add(message: &mut DynamicMessage, rule: &Rule, name: &str, text: &str) -> Result<(), Error> {
    let refuse = |why: String| Error::invalid(name, format!("query parameter: {why}"));
    let path = resolve(&message.descriptor(), name).map_err(|(part, inside)| {
        let known: Vec<String> = inside
            .iter()
            .flat_map(|message| {
                message
                    .fields()
                    .map(|f| f.name().to_owned())
                    .collect::<Vec<_>>()
            })
            .collect();
        let known = if known.is_empty() {
            "nothing".to_owned()
        } else {
            known.join(", ")
        };
        refuse(format!("there is no field {part:?}, only {known}"))
    })?;
    let full = dotted(&path);
    // The path sets this field and takes precedence.
    if rule.template.fields().any(|field| field == full) {
        return Ok(());
    }
    let in_body = match &rule.body {
        Body::None => false,
        Body::All => true,
        Body::Field(field) => path.first() == Some(field),
    };
    if in_body {
        return Err(refuse("it belongs in the body".to_owned()));
    }
    let Some((field, parents)) = path.split_last() else {
        return Err(refuse("it has no name".to_owned()));
    };
    if is_set(message, parents, field) && !field.is_list() {
        return Err(refuse("it is given twice".to_owned()));
    }
    let mut value = parameter(field, text).map_err(refuse)?;
    if let (Value::List(new), Some(Value::List(mut all))) =
        (&mut value, current(message, parents, field))
    {
        all.append(new);
        *new = all;
    }
    set(message, &path, value);
    Ok(())
}

fn dotted(path: &[FieldDescriptor]) -> String {
    let names: Vec<&str> = path.iter().map(FieldDescriptor::name).collect();
    names.join(".")
}

fn is_set(message: &DynamicMessage, parents: &[FieldDescriptor], field: &FieldDescriptor) -> bool {
    match parents {
        [] => message.has_field(field),
        [first, rest @ ..] => {
            let inside = message.get_field(first);
            message.has_field(first)
                && inside
                    .as_message()
                    .is_some_and(|inside| is_set(inside, rest, field))
        }
    }
}

fn current(
    message: &DynamicMessage,
    parents: &[FieldDescriptor],
    field: &FieldDescriptor,
) -> Option<Value> {
    match parents {
        [] => Some(message.get_field(field).into_owned()),
        [first, rest @ ..] => current(message.get_field(first).as_message()?, rest, field),
    }
}

/// Parses the text of a query parameter: the field's JSON form without quotes.
fn parameter(field: &FieldDescriptor, text: &str) -> Result<Value, String> {
    let json = match field.kind() {
        Kind::Message(message) if message.full_name() == mask::KIND => {
            return Ok(Value::Message(mask::parse(&message, text)));
        }
        // Also for a list in a message with a JSON form of its own, such as the paths of a field mask.
        Kind::String if field.is_list() => {
            return Ok(Value::List(vec![Value::String(text.to_owned())]));
        }
        Kind::String => return Ok(Value::String(text.to_owned())),
        Kind::Bool => boolean(text),
        Kind::Message(message) if message.full_name() == "google.protobuf.BoolValue" => {
            boolean(text)
        }
        Kind::Enum(_) => text
            .parse::<i32>()
            .map_or_else(|_| Json::from(text), Json::from),
        _ => Json::from(text),
    };
    let json = if field.is_list() {
        Json::Array(vec![json])
    } else {
        json
    };
    let json = Json::Object(Map::from_iter([(field.json_name().to_owned(), json)]));
    DynamicMessage::deserialize(field.parent_message().clone(), json.clone())
        .map(|message| message.get_field(field).into_owned())
        .map_err(
            |error| match explain::of_message(field.parent_message(), &json) {
                Some(fault) => fault.what,
                None => format!("{text:?}: {error}"),
            },
        )
}

/// Accepts grpc-gateway's spellings: Python clients write `True`.
fn boolean(text: &str) -> Json {
    match text {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Json::Bool(true),
        "false" | "False" | "FALSE" | "f" | "F" | "0" => Json::Bool(false),
        other => Json::from(other),
    }
}
