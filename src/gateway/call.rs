//! In-process calls of the gRPC services, through the same service stack that network clients reach.

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, TE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message;
use prost_reflect::DynamicMessage;
use tonic::Status;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

use super::route::Rule;
use crate::resource::GRPC_TIMEOUT;

/// The gRPC services with all their layers.
pub type Services = BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>;

/// HTTP headers with this prefix become call metadata, with the prefix removed.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// HTTP headers that become call metadata under the same name.
const PASSED: [HeaderName; 4] = [
    AUTHORIZATION,
    HeaderName::from_static(GRPC_TIMEOUT),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Length of the gRPC frame header: compression flag and message length.
const FRAME_HEADER: usize = 5;

/// Calls the RPC of a rule. The extensions of the HTTP request `from` (what is known of the connection) and its
/// headers meant for the service are passed along.
///
/// # Errors
/// The service's status; INTERNAL if the response is not valid gRPC.
pub async fn unary(
    services: Services,
    rule: &Rule,
    from: &Parts,
    message: &DynamicMessage,
) -> Result<DynamicMessage, Status> {
    let mut request = Request::new(Body::new(Full::new(frame(message))));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = rule.grpc_path.clone().into();
    *request.headers_mut() = metadata(&from.headers);
    *request.extensions_mut() = from.extensions.clone();

    let response = services
        .oneshot(request)
        .await
        .map_err(Status::from_error)?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    let status = body
        .trailers()
        .and_then(Status::from_header_map)
        .or_else(|| Status::from_header_map(&head.headers));
    match status {
        Some(status) if status.code() != tonic::Code::Ok => return Err(status),
        Some(_) => {}
        None => return Err(broken(rule, "it has no grpc-status")),
    }
    let message =
        unframe(body.to_bytes()).ok_or_else(|| broken(rule, "it is no single message"))?;
    DynamicMessage::decode(rule.rpc.output(), message)
        .map_err(|error| broken(rule, &error.to_string()))
}

fn broken(rule: &Rule, why: &str) -> Status {
    Status::internal(format!("the answer of {}: {why}", rule.rpc.full_name()))
}

/// Headers of the call: gRPC's own, and those of the HTTP request meant for the service.
fn metadata(http: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in http {
        let name = match name.as_str().strip_prefix(METADATA_PREFIX) {
            _ if PASSED.contains(name) => name.clone(),
            Some(bare) if !bare.starts_with("grpc-") => match HeaderName::try_from(bare) {
                Ok(name) => name,
                Err(_) => continue,
            },
            _ => continue,
        };
        headers.append(name, value.clone());
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers
}

/// Encodes a message as an uncompressed gRPC frame.
pub fn frame(message: &DynamicMessage) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put(message.encode_to_vec().as_slice());
    frame.freeze()
}

/// Extracts the message of a frame; `None` if the bytes are not exactly one uncompressed frame.
pub fn unframe(mut bytes: Bytes) -> Option<Bytes> {
    if bytes.len() < FRAME_HEADER || bytes.get_u8() != 0 {
        return None;
    }
    let length = usize::try_from(bytes.get_u32()).ok()?;
    (bytes.len() == length).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_that_are_meant_for_the_service_go_along() {
        let mut http = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("grpc-timeout", "5S"),
            ("grpc-metadata-team", "storage"),
            ("grpc-metadata-grpc-status", "0"),
            ("grpc-metadata-te", "other"),
            ("cookie", "y"),
            ("content-type", "application/json"),
            ("content-length", "7"),
        ] {
            http.insert(name, HeaderValue::from_static(value));
        }
        let headers = metadata(&http);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "authorization",
                "content-type",
                "grpc-timeout",
                "te",
                "team"
            ]
        );
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["content-type"], "application/grpc");
    }

    #[test]
    fn a_frame_is_taken_apart_only_if_it_is_whole() {
        let whole = Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]);
        assert_eq!(unframe(whole.clone()).unwrap().as_ref(), [8, 1]);
        for cut in 0..whole.len() {
            assert_eq!(unframe(whole.slice(..cut)), None);
        }
        assert_eq!(unframe(Bytes::from_static(&[1, 0, 0, 0, 0])), None);
        assert_eq!(unframe(Bytes::from_static(&[0, 0, 0, 0, 0, 9])), None);
    }
}
