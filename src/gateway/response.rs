//! Builds HTTP responses in grpc-gateway's form: every field is present, names are lowerCamelCase, 64-bit integers are
//! strings; an error is `{"code","message","details"}`.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, Response, StatusCode};
use prost_reflect::{
    DescriptorPool, DynamicMessage, Kind, ReflectMessage, SerializeOptions, Value,
};
use serde_json::{Map, Value as Json, json};
use tonic::{Code, Status};

use crate::error::Error;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why a call over HTTP failed.
#[derive(Debug)]
pub struct Failure {
    http: StatusCode,
    status: Status,
    /// Value of the header Allow: the path's methods; empty for no header.
    allowed: String,
}

impl Failure {
    /// The path has no route for this method, only for `routes`.
    pub fn method_not_allowed(method: &Method, routes: &[Method]) -> Failure {
        let mut names: Vec<&str> = routes.iter().map(Method::as_str).collect();
        if routes.contains(&Method::GET) {
            names.push(Method::HEAD.as_str());
        }
        let allowed = names.join(", ");
        Failure {
            http: StatusCode::METHOD_NOT_ALLOWED,
            status: Error::Unimplemented(format!("this path takes {allowed}, not {method}")).into(),
            allowed,
        }
    }

    /// The body is longer than the limit, in bytes.
    pub fn body_too_large(limit: usize) -> Failure {
        Failure {
            http: StatusCode::PAYLOAD_TOO_LARGE,
            status: Error::invalid("body", format!("it may have {limit} bytes at most")).into(),
            allowed: String::new(),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure {
            http: http_status(status.code()),
            status,
            allowed: String::new(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Status::from(error).into()
    }
}

/// HTTP status of a gRPC code (google.rpc.Code; 499 is nginx's status for a client that closed the connection).
fn http_status(code: Code) -> StatusCode {
    let status = match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The response to a call.
pub fn respond(answer: Result<Json, Failure>) -> Response<Body> {
    let (status, body, allowed, failed) = match answer {
        Ok(body) => (StatusCode::OK, body, String::new(), None),
        Err(failure) => {
            let body = error_body(&failure.status);
            (failure.http, body, failure.allowed, Some(failure.status))
        }
    };
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    // For the call's log and metrics.
    if let Some(failed) = failed {
        response.extensions_mut().insert(failed);
    }
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    if let (false, Ok(allowed)) = (allowed.is_empty(), HeaderValue::try_from(allowed)) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// Serializes a message as JSON.
///
/// # Errors
/// [`Error::Internal`] for a value without a JSON form, such as a time before year 1.
pub fn json(message: &DynamicMessage) -> Result<Json, Error> {
    let options = SerializeOptions::new()
        .skip_default_fields(false)
        .stringify_64_bit_integers(true);
    let mut json = message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| Error::internal("making JSON", error))?;
    add_nulls(&mut json, message);
    Ok(json)
}

/// Adds `null` for unset messages, as grpc-gateway does but prost-reflect does not. Unset members of a oneof stay
/// absent.
fn add_nulls(json: &mut Json, message: &DynamicMessage) {
    let Json::Object(object) = json else {
        return;
    };
    if message.descriptor().package_name() == "google.protobuf" {
        return;
    }
    for field in message.descriptor().fields() {
        let Kind::Message(_) = field.kind() else {
            continue;
        };
        match (
            object.get_mut(field.json_name()),
            &*message.get_field(&field),
        ) {
            (None, _) if field.containing_oneof().is_none() => {
                object.insert(field.json_name().to_owned(), Json::Null);
            }
            (Some(json), Value::Message(inside)) => add_nulls(json, inside),
            (Some(Json::Array(array)), Value::List(list)) => {
                for (json, value) in array.iter_mut().zip(list) {
                    if let Value::Message(inside) = value {
                        add_nulls(json, inside);
                    }
                }
            }
            _ => {}
        }
    }
}

fn error_body(status: &Status) -> Json {
    let details = details(status.details()).unwrap_or_default();
    json!({
        "code": status.code() as i32,
        "message": status.message(),
        "details": details,
    })
}

/// The google.rpc details of an error; `None` if they cannot be decoded.
fn details(encoded: &[u8]) -> Option<Vec<Json>> {
    static POOL: LazyLock<Option<DescriptorPool>> =
        LazyLock::new(|| DescriptorPool::decode(tonic_types::pb::FILE_DESCRIPTOR_SET).ok());
    let status = POOL.as_ref()?.get_message_by_name("google.rpc.Status")?;
    let status = DynamicMessage::decode(status, encoded).ok()?;
    let mut object: Map<String, Json> = match json(&status).ok()? {
        Json::Object(object) => object,
        _ => return None,
    };
    match object.remove("details")? {
        Json::Array(details) => Some(details),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage;

    #[test]
    fn every_field_is_answered() {
        let volume = storage::NullVolume {
            name: "volumes/a".into(),
            blocks_count: i64::MAX,
            ..Default::default()
        };
        assert_eq!(
            json(&volume.transcode_to_dynamic()).unwrap(),
            json!({"name": "volumes/a", "blockSize": "0", "blocksCount": "9223372036854775807", "uuid": ""})
        );
    }

    #[test]
    fn an_unset_message_is_null_and_an_unset_member_of_a_oneof_is_not_there() {
        let controller = storage::NvmeController {
            spec: Some(storage::NvmeControllerSpec {
                endpoint: Some(storage::nvme_controller_spec::Endpoint::PcieId(
                    storage::PciEndpoint {
                        port_id: Some(0),
                        ..Default::default()
                    },
                )),
                ..Default::default()
            }),
            ..Default::default()
        };
        let list = storage::ListNvmeControllersResponse {
            nvme_controllers: vec![controller],
            ..Default::default()
        };
        let found = json(&list.transcode_to_dynamic()).unwrap();
        let controller = &found["nvmeControllers"][0];
        assert_eq!(controller["status"], Json::Null);
        assert!(controller.as_object().unwrap().contains_key("status"));
        let spec = controller["spec"].as_object().unwrap();
        assert_eq!(spec["trtype"], "NVME_TRANSPORT_TYPE_UNSPECIFIED");
        assert_eq!(spec["minLimit"], Json::Null);
        assert!(!spec.contains_key("fabricsId") && !spec.contains_key("nvmeControllerId"));
        assert_eq!(
            spec["pcieId"],
            json!({"portId": 0, "physicalFunction": null, "virtualFunction": null})
        );
        let empty = storage::ListNvmeControllersResponse::default();
        assert_eq!(
            json(&empty.transcode_to_dynamic()).unwrap(),
            json!({"nvmeControllers": [], "nextPageToken": ""})
        );
    }

    #[test]
    fn an_error_keeps_its_details() {
        let status = Status::from(Error::invalid("null_volume.block_size", "must be set"));
        let body = error_body(&status);
        assert_eq!(body["code"], 3);
        let details = body["details"].as_array().unwrap();
        let bad = details
            .iter()
            .find(|d| d["@type"] == "type.googleapis.com/google.rpc.BadRequest")
            .unwrap();
        assert_eq!(bad["fieldViolations"][0]["field"], "null_volume.block_size");
    }

    #[test]
    fn an_error_without_details_has_an_empty_list() {
        let body = error_body(&Status::unavailable("no answer"));
        assert_eq!(
            body,
            json!({"code": 14, "message": "no answer", "details": []})
        );
        let odd = Status::with_details(Code::Internal, "x", vec![0xff; 9].into());
        assert_eq!(error_body(&odd)["details"], json!([]));
    }

    #[test]
    fn codes_have_their_http_status() {
        for (code, status) in [
            (Code::NotFound, 404),
            (Code::AlreadyExists, 409),
            (Code::FailedPrecondition, 400),
            (Code::Unimplemented, 501),
            (Code::Cancelled, 499),
            (Code::Unavailable, 503),
        ] {
            assert_eq!(http_status(code).as_u16(), status, "{code:?}");
        }
    }
}
