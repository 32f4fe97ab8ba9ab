//! Prints objects as a table, JSON or YAML.

use std::collections::BTreeMap;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind as FieldKind, MessageDescriptor, Value};
use serde_json::{Map, Value as Json};

use super::Failure;
use super::failure::plain;
use super::fields::common_prefix;
use crate::cli::print;
use crate::gateway::json_of;

/// Nesting of messages up to which fields have columns.
const DEPTH: usize = 4;

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    /// Columns
    Table,
    /// JSON, as over HTTP, with the kind
    Json,
    /// The same as YAML
    Yaml,
}

/// Prints one object, or several as a list.
///
/// # Errors
/// Writing to the standard output failed.
pub(super) fn show(form: Form, messages: &[DynamicMessage], is_one: bool) -> Result<(), Failure> {
    let text = match form {
        Form::Table => tables(messages),
        Form::Json | Form::Yaml => {
            let objects: Result<Vec<Json>, Failure> = messages.iter().map(object).collect();
            structured(form, objects?, is_one)?
        }
    };
    print(&text).map_err(Failure::Here)
}

/// Serializes one object, or a list, as JSON or YAML.
pub(super) fn structured(
    form: Form,
    mut objects: Vec<Json>,
    is_one: bool,
) -> Result<String, Failure> {
    let json = match objects.pop() {
        Some(only) if is_one => only,
        last => {
            objects.extend(last);
            Json::Array(objects)
        }
    };
    match form {
        Form::Yaml => serde_saphyr::to_string(&json)
            .map_err(|error| Failure::Here(format!("no YAML can be made of it: {error}"))),
        _ => Ok(format!("{json:#}\n")),
    }
}

/// The JSON of an object, with its kind so that `create -f` can read it back.
pub(super) fn object(message: &DynamicMessage) -> Result<Json, Failure> {
    use prost_reflect::ReflectMessage;
    let json = json_of(message).map_err(|error| Failure::Here(error.to_string()))?;
    let kind = Json::from(message.descriptor().name());
    let mut all = Map::from_iter([("kind".to_owned(), kind)]);
    if let Json::Object(object) = json {
        all.extend(object);
    }
    Ok(Json::Object(all))
}

/// The JSON of a message that is not a kind's.
pub(super) fn json_object(message: &impl prost_reflect::ReflectMessage) -> Result<Json, Failure> {
    let json = json_of(&message.transcode_to_dynamic());
    json.map_err(|error| Failure::Here(error.to_string()))
}

/// A table for each message type.
fn tables(messages: &[DynamicMessage]) -> String {
    use prost_reflect::ReflectMessage;
    let mut text = String::new();
    let mut rest = messages;
    while let Some(first) = rest.first() {
        let descriptor = first.descriptor();
        let same = |one: &&DynamicMessage| one.descriptor() == descriptor;
        let length = rest.iter().take_while(same).count();
        let (these, others) = rest.split_at(length);
        if !text.is_empty() {
            text.push('\n');
        }
        text += &table(&descriptor, these);
        rest = others;
    }
    text
}

fn table(descriptor: &MessageDescriptor, messages: &[DynamicMessage]) -> String {
    let mut columns = Vec::new();
    add_columns(descriptor, &[], &mut columns);
    let cells = |path: &Vec<FieldDescriptor>| -> Vec<String> {
        messages.iter().map(|message| cell(message, path)).collect()
    };
    let mut shown: Vec<(Vec<FieldDescriptor>, Vec<String>)> = columns
        .into_iter()
        .map(|path| (cells(&path), path))
        .map(|(cells, path)| (path, cells))
        .collect();
    shown.retain(|(path, cells)| is_name(path) || cells.iter().any(|cell| !cell.is_empty()));
    let headers = headers(&shown);
    let columns = shown.into_iter().zip(headers);
    grid(
        columns
            .map(|((_, cells), header)| (header, cells))
            .collect(),
    )
}

/// Columns under their headers, as wide as their widest cell.
pub(super) fn grid(columns: Vec<(String, Vec<String>)>) -> String {
    let rows = columns.first().map_or(0, |(_, cells)| cells.len());
    let mut lines = vec![String::new(); rows + 1];
    for (header, cells) in columns {
        let cells = cells.into_iter().map(|cell| match cell.as_str() {
            "" => "-".to_owned(),
            _ => plain(&cell),
        });
        let cells: Vec<String> = std::iter::once(header).chain(cells).collect();
        let width = cells.iter().map(|cell| cell.chars().count()).max();
        let width = width.unwrap_or_default();
        for (line, cell) in lines.iter_mut().zip(cells) {
            if !line.is_empty() {
                line.push_str("   ");
            }
            *line += &format!("{cell:<width$}");
        }
    }
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    lines.join("\n") + "\n"
}

/// Headers: the last name of each path, or the whole path where the last name is ambiguous.
fn headers(columns: &[(Vec<FieldDescriptor>, Vec<String>)]) -> Vec<String> {
    let last = |path: &[FieldDescriptor]| path.last().map_or("", FieldDescriptor::name).to_owned();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (path, _) in columns {
        *seen.entry(last(path)).or_default() += 1;
    }
    let header = |path: &Vec<FieldDescriptor>| {
        let name = last(path);
        let name = match seen.get(&name) {
            Some(1) => name,
            _ => {
                let parts: Vec<&str> = path.iter().map(FieldDescriptor::name).collect();
                parts.join(".")
            }
        };
        name.to_uppercase()
    };
    columns.iter().map(|(path, _)| header(path)).collect()
}

fn is_name(path: &[FieldDescriptor]) -> bool {
    matches!(path, [field] if field.name() == "name")
}

/// Collects the fields that have a column: all but keys and the contents of lists.
fn add_columns(
    message: &MessageDescriptor,
    above: &[FieldDescriptor],
    columns: &mut Vec<Vec<FieldDescriptor>>,
) {
    for field in message.fields() {
        let mut path = above.to_vec();
        path.push(field.clone());
        match field.kind() {
            FieldKind::Message(inside)
                if !field.is_list()
                    && !field.is_map()
                    && inside.package_name() != "google.protobuf" =>
            {
                if path.len() < DEPTH {
                    add_columns(&inside, &path, columns);
                }
            }
            FieldKind::Bytes => {}
            _ => columns.push(path),
        }
    }
}

/// The text of a field; empty if the field is not set.
fn cell(message: &DynamicMessage, path: &[FieldDescriptor]) -> String {
    match path {
        [] => String::new(),
        [field] if message.has_field(field) => text(field, &message.get_field(field)),
        [_] => String::new(),
        [field, rest @ ..] => {
            let value = message.get_field(field);
            let inside = value.as_message().filter(|_| message.has_field(field));
            inside.map_or_else(String::new, |inside| cell(inside, rest))
        }
    }
}

fn text(field: &FieldDescriptor, value: &Value) -> String {
    match value {
        Value::List(list) if matches!(field.kind(), FieldKind::Message(_)) => {
            list.len().to_string()
        }
        Value::List(list) => {
            let items: Vec<String> = list.iter().map(|item| text(field, item)).collect();
            items.join(",")
        }
        Value::Map(map) => map.len().to_string(),
        Value::String(text) => text.clone(),
        Value::EnumNumber(number) => match field.kind() {
            FieldKind::Enum(values) => values.get_value(*number).map_or_else(
                || number.to_string(),
                |value| {
                    let common = common_prefix(&values);
                    let name = value.name();
                    name.strip_prefix(common.as_str())
                        .unwrap_or(name)
                        .to_owned()
                },
            ),
            _ => number.to_string(),
        },
        Value::Message(message) => match json_of_known(message) {
            Some(Json::String(text)) => text,
            Some(json) => json.to_string(),
            None => String::new(),
        },
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
    }
}

/// The JSON of a well-known protobuf type, such as a timestamp.
fn json_of_known(message: &DynamicMessage) -> Option<Json> {
    serde_json::to_value(message).ok()
}

#[cfg(test)]
mod tests {
    use super::super::kinds;
    use super::*;

    fn controller(json: Json) -> DynamicMessage {
        let kind = kinds::find("nvmeController").unwrap();
        DynamicMessage::deserialize(kind.message.clone(), json).unwrap()
    }

    #[test]
    fn a_table_has_the_fields_that_some_object_has_under_their_last_names() {
        let messages = [
            controller(serde_json::json!({
                "name": "nvmeSubsystems/s/nvmeControllers/c\u{1b}[2J",
                "spec": {"trtype": "NVME_TRANSPORT_TYPE_TCP", "fabricsId": {"traddr": "127.0.0.1"}},
            })),
            controller(serde_json::json!({"name": "d"})),
        ];
        let text = tables(&messages);
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(header, ["NAME", "TRTYPE", "TRADDR"]);
        let first = lines.next().unwrap();
        assert!(first.ends_with("TCP      127.0.0.1"), "{first:?}");
        assert!(!first.contains('\u{1b}'), "{first:?}");
        assert_eq!(lines.next().unwrap().split_whitespace().last(), Some("-"));
    }

    #[test]
    fn an_object_is_written_so_that_a_file_of_it_can_be_read_again() {
        let message = controller(serde_json::json!({"name": "n"}));
        let json = object(&message).unwrap();
        assert_eq!(json["kind"], "NvmeController");
        let yaml = structured(Form::Yaml, vec![json.clone()], true).unwrap();
        let again: Json = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(again, json, "{yaml}");
    }
}
