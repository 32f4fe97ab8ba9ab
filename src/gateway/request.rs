//! From an HTTP request to the request message of an RPC.
//!
//! The query fills fields first, then the body, then the path, whose word is last. A PATCH without a
//! mask gets one: the fields that its body names.

use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage,
    Value,
};

use serde_json::Value as Json;

use super::route::{Body, Rule, resolve};
use super::template::Captures;
use super::unique_keys::UniqueKeys;
use super::{mask, query};
use crate::error::Error;

/// Makes the request message.
///
/// # Errors
/// [`Error::Invalid`] with the field and, in the body, the line and column.
pub fn build(
    rule: &Rule,
    captures: &Captures,
    query: &[(String, String)],
    body: &[u8],
) -> Result<DynamicMessage, Error> {
    let mut message = DynamicMessage::new(rule.rpc.input());
    for (name, text) in query {
        query::add(&mut message, rule, name, text)?;
    }
    let mut json = Json::Null;
    // A body of nothing but white space is none.
    if !body.trim_ascii().is_empty() {
        match &rule.body {
            Body::None => {}
            Body::All => (message, json) = parse(&rule.rpc.input(), "", body)?,
            Body::Field(field) => {
                if let Kind::Message(inside) = field.kind() {
                    let value;
                    (value, json) = parse(&inside, field.name(), body)?;
                    message.set_field(field, Value::Message(value));
                }
            }
        }
    }
    for (field, value) in captures {
        set_string(&mut message, field, value)?;
    }
    if let Body::Field(field) = &rule.body {
        mask::complete(&mut message, field, captures, &json);
    }
    Ok(message)
}

/// Reads a message from JSON, and the JSON as it is. Unknown fields are refused.
fn parse(
    message: &MessageDescriptor,
    field: &str,
    json: &[u8],
) -> Result<(DynamicMessage, Json), Error> {
    let mut track = serde_path_to_error::Track::new();
    let mut input = serde_json::Deserializer::from_slice(json);
    let tracked = serde_path_to_error::Deserializer::new(&mut input, &mut track);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let found = DynamicMessage::deserialize_with_options(message.clone(), tracked, &options)
        .and_then(|value| input.end().map(|()| value))
        .and_then(|value| serde_json::from_slice(json).map(|UniqueKeys(json)| (value, json)));
    found.map_err(|error| {
        let inside = track.path().to_string();
        // Where JSON breaks off there is no name for what would have come.
        let inside = match inside.trim_end_matches(['.', '?']) {
            "" => ".",
            inside => inside,
        };
        let place = match (field, inside) {
            ("", ".") => "body",
            ("", inside) => inside,
            (field, ".") => field,
            (field, inside) => &format!("{field}.{inside}"),
        };
        Error::invalid(place, format!("the body is no such JSON: {error}"))
    })
}

/// Sets the string field at a path; messages on the way are made.
fn set_string(message: &mut DynamicMessage, path: &str, value: &str) -> Result<(), Error> {
    let fields = resolve(&message.descriptor(), path)
        .map_err(|(name, _)| Error::invalid(path, format!("there is no field {name:?}")))?;
    set(message, &fields, Value::String(value.to_owned()));
    Ok(())
}

/// Sets the field at a path; messages on the way are made.
pub fn set(message: &mut DynamicMessage, path: &[FieldDescriptor], value: Value) {
    match path {
        [] => {}
        [field] => message.set_field(field, value),
        [field, rest @ ..] => {
            if let Value::Message(inside) = message.get_field_mut(field) {
                set(inside, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::route::{Found, Table};
    use super::*;
    use crate::api::{self, storage};
    use axum::http::Method;

    fn request(method: Method, path: &str, body: &str) -> Result<DynamicMessage, Error> {
        let table = Table::new(api::pool()).unwrap();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let Found::Route(rules) = table.find(&method, path) else {
            panic!("no route for {path}");
        };
        build(rules[0].0, &rules[0].1, &query, body.as_bytes())
    }

    fn refused(method: Method, path: &str, body: &str) -> String {
        request(method, path, body).unwrap_err().to_string()
    }

    #[test]
    fn path_query_and_body_make_one_message() {
        let body = r#"{"blockSize":"512","blocks_count":64}"#;
        for query in ["null_volume_id=a1", "nullVolumeId=a1"] {
            let found = request(Method::POST, &format!("/v1/nullVolumes?{query}"), body).unwrap();
            let found: storage::CreateNullVolumeRequest = found.transcode_to().unwrap();
            assert_eq!(found.null_volume_id, "a1");
            let volume = found.null_volume.unwrap();
            assert_eq!((volume.block_size, volume.blocks_count), (512, 64));
        }
        let found = request(
            Method::GET,
            "/v1/nullVolumes?page_size=3&pageToken=t%20u",
            "",
        );
        let found: storage::ListNullVolumesRequest = found.unwrap().transcode_to().unwrap();
        assert_eq!((found.page_size, found.page_token.as_str()), (3, "t u"));
        for (text, want) in [("true", true), ("True", true), ("1", true), ("F", false)] {
            let path = format!("/v1/nullVolumes/x?allow_missing={text}");
            let found = request(Method::DELETE, &path, "").unwrap();
            let found: storage::DeleteNullVolumeRequest = found.transcode_to().unwrap();
            assert_eq!(
                (found.name.as_str(), found.allow_missing),
                ("nullVolumes/x", want),
                "{text}"
            );
        }
    }

    #[test]
    fn protobuf_json_is_read() {
        let path = "/v1/nvmeSubsystems/s/nvmeControllers?nvme_controller_id=c";
        let body = r#"{"spec":{"trtype":"NVME_TRANSPORT_TYPE_PCIE",
            "pcieId":{"portId":0,"physicalFunction":1,"virtual_function":0},"nvmeControllerId":7}}"#;
        let found = request(Method::POST, path, body).unwrap();
        let found: storage::CreateNvmeControllerRequest = found.transcode_to().unwrap();
        assert_eq!(found.parent, "nvmeSubsystems/s");
        let spec = found.nvme_controller.unwrap().spec.unwrap();
        assert_eq!(spec.nvme_controller_id, Some(7));
        let Some(storage::nvme_controller_spec::Endpoint::PcieId(pcie)) = spec.endpoint else {
            panic!("no endpoint");
        };
        assert_eq!((pcie.port_id, pcie.physical_function), (Some(0), Some(1)));
    }

    fn update_mask(path: &str, body: &str) -> Vec<String> {
        let found = request(Method::PATCH, path, body).unwrap();
        let found: storage::UpdateNvmeSubsystemRequest = found.transcode_to().unwrap();
        assert_eq!(found.nvme_subsystem.unwrap().name, "nvmeSubsystems/s");
        found.update_mask.map(|mask| mask.paths).unwrap_or_default()
    }

    #[test]
    fn a_patch_without_a_mask_changes_what_its_body_names() {
        let path = "/v1/nvmeSubsystems/s";
        let body = r#"{"name":"nvmeSubsystems/other","spec":{"modelNumber":"m","hostnqn":null}}"#;
        let mut paths = update_mask(path, body);
        paths.sort();
        assert_eq!(paths, ["spec.hostnqn", "spec.model_number"]);
        assert!(update_mask(path, "").is_empty());
        assert!(update_mask(path, "{}").is_empty());
        let round_trip = r#"{"spec":{"modelNumber":"m","psk":""}}"#;
        assert_eq!(update_mask(path, round_trip), ["spec.model_number"]);
        for alone in [r#"{"spec":{"psk":""}}"#, r#"{"spec":{"psk":null}}"#] {
            assert_eq!(update_mask(path, alone), ["spec.psk"]);
        }
        // An empty message means all of it, as in grpc-gateway.
        assert_eq!(update_mask(path, r#"{"spec":{}}"#), ["spec"]);
        let with = |query: &str| update_mask(&format!("{path}?{query}"), body);
        assert_eq!(with("update_mask=*"), ["*"]);
        assert_eq!(
            with("updateMask=spec.modelNumber,spec.max_namespaces"),
            ["spec.model_number", "spec.max_namespaces"]
        );
        assert_eq!(
            with("update_mask.paths=spec.psk&updateMask.paths=spec.hostnqn"),
            ["spec.psk", "spec.hostnqn"]
        );
        assert_eq!(with("update_mask=").len(), 2);
    }

    #[test]
    fn bad_bodies_are_refused_with_their_place() {
        let create = |body| refused(Method::POST, "/v1/nvmeSubsystems", body);
        let unknown = create("{\"spec\":\n  {\"nqm\":\"x\"}}");
        assert!(unknown.contains("nvme_subsystem.spec"), "{unknown}");
        assert!(
            unknown.contains("nqm") && unknown.contains("line 2"),
            "{unknown}"
        );
        let wrong = create(r#"{"spec":{"maxNamespaces":"many"}}"#);
        assert!(
            wrong.contains("nvme_subsystem.spec.maxNamespaces"),
            "{wrong}"
        );
        assert!(wrong.contains("column"), "{wrong}");
        for broken in [
            "{",
            "[]",
            "{} {}",
            "{\"spec\":{}",
            "\u{1}",
            "nul",
            "{\"spec\":1}",
            "7",
        ] {
            let text = create(broken);
            assert!(
                text.contains("line 1 column") || text.contains("expected"),
                "{broken}: {text}"
            );
            assert!(!text.contains(".?"), "{broken}: {text}");
        }
        let twice = create(r#"{"spec":{"model_number":"a","modelNumber":"b"}}"#);
        assert!(
            twice.contains("\"modelNumber\" is given twice at line 1 column 41"),
            "{twice}"
        );
        let deep = "[".repeat(100_000);
        create(&format!("{{\"spec\":{deep}"));
    }

    #[test]
    fn bad_parameters_are_refused_by_name() {
        let list = |query: &str| refused(Method::GET, &format!("/v1/nullVolumes?{query}"), "");
        assert!(list("page_sice=1").contains("page_size, page_token"));
        assert!(list("page_size=one").contains("\"one\""));
        assert!(list("page_size=1&pageSize=2").contains("twice"));
        assert!(list("page_size=3000000000").contains("page_size"));
        assert!(list("page_size.x=1").contains("\"x\""));
        assert!(list("=1").contains("no field"));
        let get = request(Method::GET, "/v1/nullVolumes/a?name=b", "").unwrap();
        let get: storage::GetNullVolumeRequest = get.transcode_to().unwrap();
        assert_eq!(get.name, "nullVolumes/a", "the path has the last word");
        let create = refused(Method::POST, "/v1/nullVolumes?null_volume.uuid=b", "{}");
        assert!(create.contains("body"), "{create}");
        let delete = refused(Method::DELETE, "/v1/nullVolumes/a?allow_missing=yes", "");
        assert!(delete.contains("allow_missing"), "{delete}");
    }
}
