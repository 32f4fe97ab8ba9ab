//! Builds the request message of an RPC from an HTTP request.
//!
//! Fields are set by the query, then the body, then the path, which takes precedence. A PATCH without a mask gets the
//! fields that its body names.

use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage,
    Value,
};

use serde_json::Value as Json;

use super::explain::{self, Fault};
use super::route::{Body, Rule, resolve};
use super::template::Captures;
use super::unique_keys::UniqueKeys;
use super::{mask, query};
use crate::error::Error;

/// Builds the request message.
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
    // A body of only white space counts as absent.
    if !body.trim_ascii().is_empty() {
        match &rule.body {
            Body::None => {}
            Body::All => (message, json) = parse(rule, &rule.rpc.input(), "", body)?,
            Body::Field(field) => {
                if let Kind::Message(inside) = field.kind() {
                    let value;
                    (value, json) = parse(rule, &inside, field.name(), body)?;
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

/// Parses JSON into a message; also returns the JSON. Unknown fields are refused.
fn parse(
    rule: &Rule,
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
        let (line, column) = (error.line(), error.column());
        let at = format!("line {line} column {column}");
        match serde_json::from_slice(json) {
            Ok(UniqueKeys(json)) => {
                let fault = misplaced_field(rule, message, &json)
                    .or_else(|| explain::of_message(message, &json));
                if let Some(Fault { path, what }) = fault {
                    return Error::invalid(place(field, &path), format!("{what} ({at})"));
                }
            }
            Err(error) if error.is_syntax() || error.is_eof() => {
                return Error::invalid(place(field, ""), format!("the body is not JSON: {error}"));
            }
            Err(_) => {}
        }
        let inside = track.path().to_string();
        // Truncated JSON has no name for the missing part.
        let inside = inside.trim_end_matches(['.', '?']);
        Error::invalid(
            place(field, inside),
            format!("the body is no such JSON: {error}"),
        )
    })
}

/// The path for an error: the request's field that the body fills, and the path within it.
fn place(field: &str, inside: &str) -> String {
    match (field, inside) {
        ("", "") => "body".to_owned(),
        ("", inside) => inside.to_owned(),
        (field, "") => field.to_owned(),
        (field, inside) => format!("{field}.{inside}"),
    }
}

/// Detects a body that contains request fields which belong to the path or the query.
fn misplaced_field(rule: &Rule, message: &MessageDescriptor, json: &Json) -> Option<Fault> {
    let Body::Field(body) = &rule.body else {
        return None;
    };
    let names = json.as_object()?.keys();
    let mut strays = names.filter(|name| resolve(message, name).is_err());
    let stray = strays.find(|name| resolve(&rule.rpc.input(), name).is_ok())?;
    let fields = resolve(&rule.rpc.input(), stray).ok()?;
    let [field] = fields.as_slice() else {
        return None;
    };
    let what = if field == body {
        let id = rule
            .rpc
            .input()
            .fields()
            .find(|field| field.name().ends_with("_id"));
        let id = id.map(|id| format!(", and its ID goes to the query, ?{}=", id.name()));
        format!(
            "the body is the {} alone, without {stray:?} around it{}",
            message.name(),
            id.unwrap_or_default()
        )
    } else {
        format!("{stray:?} belongs to the query, ?{}=", field.name())
    };
    Some(Fault {
        path: String::new(),
        what,
    })
}

/// Sets the string field at a path, creating messages on the way.
fn set_string(message: &mut DynamicMessage, path: &str, value: &str) -> Result<(), Error> {
    let fields = resolve(&message.descriptor(), path)
        .map_err(|(name, _)| Error::invalid(path, format!("there is no field {name:?}")))?;
    set(message, &fields, Value::String(value.to_owned()));
    Ok(())
}

/// Sets the field at a path, creating messages on the way.
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
        // An empty message means the whole message, as in grpc-gateway.
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
    fn what_stands_in_the_body_and_belongs_elsewhere_is_told_with_its_place() {
        let create = |body: &str| refused(Method::POST, "/v1/nullVolumes", body);
        let volume = r#"{"blockSize":"512","blocksCount":"8"}"#;
        for name in ["nullVolume", "null_volume"] {
            let body = format!(r#"{{"{name}":{volume}}}"#);
            let text = create(&body);
            let what = format!(
                "null_volume: the body is the NullVolume alone, without {name:?} around it, and its ID \
                 goes to the query, ?null_volume_id="
            );
            assert!(text.starts_with(&what), "{text}");
        }
        let text = create(r#"{"nullVolumeId":"a"}"#);
        assert!(
            text.starts_with(
                "null_volume: \"nullVolumeId\" belongs to the query, ?null_volume_id="
            ),
            "{text}"
        );
        let update = refused(
            Method::PATCH,
            "/v1/nullVolumes/a",
            r#"{"updateMask":"uuid"}"#,
        );
        assert!(update.contains("?update_mask="), "{update}");
    }

    #[test]
    fn a_body_that_is_not_json_is_told_from_one_of_other_fields() {
        for (body, is_json) in [
            ("block_size=512", false),
            ("{'blockSize':512}", false),
            ("{\"blockSize\":512", false),
            ("{\"blockSize\":512,}", false),
            ("[]", true),
            ("{\"blockSize\":\"x\"}", true),
        ] {
            let text = refused(Method::POST, "/v1/nullVolumes", body);
            assert_eq!(text.contains("the body is not JSON"), !is_json, "{text}");
        }
    }

    #[test]
    fn bad_parameters_are_refused_by_name() {
        let list = |query: &str| refused(Method::GET, &format!("/v1/nullVolumes?{query}"), "");
        assert!(list("page_sice=1").contains("page_size, page_token"));
        assert!(
            list("page_size=one")
                .contains("\"one\" is not a whole number from -2147483648 to 2147483647")
        );
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
        assert!(
            delete.contains("allow_missing") && delete.contains("neither true nor false"),
            "{delete}"
        );
    }
}
