//! Reads objects from JSON or YAML: a single object, a list, or several YAML documents.

use std::io::Read;
use std::path::Path;

use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde_json::Value as Json;

use super::Failure;
use super::kinds;
use super::reference::Reference;
use crate::gateway::fault_in;

/// Maximum size of a file, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// An object of a file.
#[derive(Debug)]
pub(super) struct Given {
    /// The kind (and name) given by `kind` or by the object's name; `None` if neither gives one.
    pub reference: Option<Reference>,
    /// The object, without `kind`.
    pub json: Json,
}

/// Opens a file, or the standard input for `-`.
pub(super) fn open(file: &Path) -> std::io::Result<Box<dyn Read>> {
    Ok(match file == Path::new("-") {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(std::fs::File::open(file)?),
    })
}

/// Reads the objects of a file; `-` is the standard input.
///
/// # Errors
/// What is wrong, with the location in the file.
pub(super) fn read(file: &Path) -> Result<Vec<Given>, Failure> {
    let shown = file.display();
    let fail = |error: std::io::Error| Failure::Here(format!("{shown}: {error}"));
    let mut text = String::new();
    let input = open(file).map_err(fail)?;
    input
        .take(FILE_MAX)
        .read_to_string(&mut text)
        .map_err(fail)?;
    if text.len() as u64 >= FILE_MAX {
        return Err(Failure::Here(format!(
            "{shown}: it has more than {FILE_MAX} bytes"
        )));
    }
    objects(&text).map_err(|reason| Failure::Here(format!("{shown}: {reason}")))
}

fn objects(text: &str) -> Result<Vec<Given>, String> {
    let documents: Vec<Json> = if text.trim_start().starts_with(['{', '[']) {
        vec![serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?]
    } else {
        serde_saphyr::from_multiple(text).map_err(|error| {
            let error = error.to_string();
            // The following lines only draw the location.
            let first = error.lines().next().unwrap_or_default();
            format!("it is not YAML: {first}")
        })?
    };
    let mut found = Vec::new();
    for document in documents {
        match document {
            Json::Null => {}
            Json::Array(several) => {
                for one in several {
                    found.push(given(one)?);
                }
            }
            one => found.push(given(one)?),
        }
    }
    if found.is_empty() {
        return Err("there is no object in it".to_owned());
    }
    Ok(found)
}

fn given(mut json: Json) -> Result<Given, String> {
    let Some(object) = json.as_object_mut() else {
        return Err(format!("{json} is no object"));
    };
    let kind = match object.remove("kind") {
        None => None,
        Some(Json::String(kind)) => Some(kind),
        Some(other) => return Err(format!("kind: {other} is no text")),
    };
    let name = object.get("name").and_then(Json::as_str);
    let name = name.filter(|name| !name.is_empty()).map(str::to_owned);
    let reference = match (kind, name) {
        (Some(kind), name) => Some(Reference::parse(&kind, name.as_deref(), None)),
        (None, Some(name)) if is_typed(&name) => Some(Reference::parse(&name, None, None)),
        (None, _) => None,
    };
    let reference = reference.transpose().map_err(|error| error.to_string())?;
    Ok(Given { reference, json })
}

/// Whether a name gives the kind: the one of `volumes/a` is not known.
fn is_typed(name: &str) -> bool {
    let collections: Vec<&str> = name.split('/').step_by(2).collect();
    kinds::of_collections(&collections).is_some()
}

/// Converts JSON into the message.
///
/// # Errors
/// The field at fault, and the reason.
pub(super) fn message(
    descriptor: &MessageDescriptor,
    json: &Json,
) -> Result<DynamicMessage, String> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), json, &options);
    message.map_err(|error| match fault_in(descriptor, json) {
        Some((path, what)) if path.is_empty() => what,
        Some((path, what)) => format!("{path}: {what}"),
        None => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_come_alone_as_a_list_or_as_documents() {
        let names = |text: &str| -> Vec<String> {
            let given = objects(text).unwrap().into_iter();
            given
                .map(|one| one.reference.unwrap().name.unwrap())
                .collect()
        };
        assert_eq!(
            names("name: nullVolumes/a\nblock_size: 512\n"),
            ["nullVolumes/a"]
        );
        assert_eq!(
            names(r#"[{"kind": "NullVolume", "name": "volumes/a"}, {"name": "nullVolumes/b"}]"#),
            ["volumes/a", "nullVolumes/b"]
        );
        assert_eq!(
            names("kind: null-volume\nname: a\n---\nname: nvmeSubsystems/s/nvmeNamespaces/n\n"),
            ["nullVolumes/a", "nvmeSubsystems/s/nvmeNamespaces/n"]
        );
        assert!(objects("name: volumes/a").unwrap()[0].reference.is_none());
    }

    #[test]
    fn a_file_that_is_none_is_refused_with_the_reason() {
        for (text, told) in [
            ("{\"a\": ", "not JSON: EOF"),
            ("a: [", "not YAML"),
            ("", "no object"),
            ("3", "is no object"),
            ("kind: Nothing", "is no kind"),
        ] {
            let error = objects(text).unwrap_err();
            assert!(error.contains(told), "{text:?}: {error}");
        }
        let kind = kinds::find("nullVolume").unwrap();
        let json = serde_json::json!({"blockSize": "big"});
        let error = message(&kind.message, &json).unwrap_err();
        assert!(error.starts_with("blockSize: "), "{error}");
    }
}
