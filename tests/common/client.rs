//! A gRPC client driven by the API's descriptors: requests and responses are JSON, methods are found by
//! name, so that one test can cover every kind.

use std::net::SocketAddr;
use std::time::Duration;

use opi_spdk::api;
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, MethodDescriptor, SerializeOptions, Value as FieldValue,
};
use serde_json::Value;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

/// Timeout of every call: a hang is a failure of the program under test.
const BOUND: Duration = Duration::from_secs(15);

/// A gRPC connection to the program under test.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    token: Option<String>,
}

impl Client {
    /// Connects; returns `None` if nothing listens at the address.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect_timeout(BOUND).connect().await.ok()?;
        Some(Self::over(channel))
    }

    /// Returns a client on a connection that is open already, such as one with TLS.
    pub fn over(channel: Channel) -> Self {
        Self {
            channel,
            token: None,
        }
    }

    /// Returns a client on the same connection whose calls carry this bearer token.
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            channel: self.channel(),
            token: Some(token.to_owned()),
        }
    }

    /// Returns the channel, for clients of other services.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Returns whether grpc.health.v1 reports SERVING.
    pub async fn is_serving(&self) -> bool {
        let request = HealthCheckRequest::default();
        let answer = HealthClient::new(self.channel()).check(request).await;
        answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
    }

    /// Calls a method of the API. Panics if the request does not match the method's input type.
    pub async fn call(&self, method: &str, request: Value) -> Result<Value, Status> {
        let method = find_method(method);
        let request = message_of(&method, request);
        Ok(to_json(&self.call_method(&method, &request).await?))
    }

    /// Calls a method with protobuf messages in place of JSON.
    pub async fn call_method(
        &self,
        method: &MethodDescriptor,
        request: &DynamicMessage,
    ) -> Result<DynamicMessage, Status> {
        let bytes = request.encode_to_vec().into();
        let answer = self.call_raw(&path_of(method), bytes).await?;
        Ok(DynamicMessage::decode(method.output(), answer).expect("an answer of its type"))
    }

    /// Calls a method that must succeed.
    pub async fn ok(&self, method: &str, request: Value) -> Value {
        let shown = request.to_string();
        let answer = self.call(method, request).await;
        answer.unwrap_or_else(|status| panic!("{method}({shown}): {status}"))
    }

    /// Calls a method that must fail with `code`; checks the error details and returns the status.
    pub async fn fails(&self, method: &str, request: Value, code: Code) -> Status {
        let shown = request.to_string();
        match self.call(method, request).await {
            Ok(answer) => panic!("{method}({shown}) is OK, not {code:?}: {answer}"),
            Err(status) => {
                assert_eq!(status.code(), code, "{method}({shown}): {status}");
                check_details(&status);
                status
            }
        }
    }

    /// Calls a path with these bytes as the request message.
    pub async fn call_raw(&self, path: &str, bytes: Bytes) -> Result<Bytes, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel()).max_decoding_message_size(1 << 26);
        let call = async {
            let ready = grpc.ready().await;
            ready.map_err(|e| Status::unavailable(format!("connection: {e}")))?;
            let path = path.parse().expect("a path");
            let mut request = Request::new(bytes);
            if let Some(token) = &self.token {
                let value = format!("Bearer {token}").parse().expect("a header");
                request.metadata_mut().insert("authorization", value);
            }
            grpc.unary(request, path, RawCodec).await
        };
        let answer = tokio::time::timeout(BOUND, call).await;
        let answer = answer.unwrap_or_else(|_| panic!("{path} did not answer within {BOUND:?}"))?;
        Ok(answer.into_inner())
    }
}

impl Client {
    /// Starts a call whose request message is never sent; it ends with the connection.
    pub async fn call_without_end(&self, path: &str) -> Result<Bytes, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel());
        let ready = grpc.ready().await;
        ready.map_err(|e| Status::unavailable(format!("connection: {e}")))?;
        let request = Request::new(futures_util::stream::pending());
        let path = path.parse().expect("a path");
        let answer = grpc.client_streaming(request, path, RawCodec).await?;
        Ok(answer.into_inner())
    }
}

/// Finds a method by name in any service of the API.
pub fn find_method(name: &str) -> MethodDescriptor {
    let mut methods = api::pool()
        .services()
        .flat_map(|s| s.methods().collect::<Vec<_>>());
    let found = methods.find(|method| method.name() == name);
    found.unwrap_or_else(|| panic!("the API has no method {name}"))
}

/// Returns whether the field has this `google.api.field_behavior`: REQUIRED, OUTPUT_ONLY...
pub fn has_behaviour(field: &FieldDescriptor, name: &str) -> bool {
    let pool = api::pool();
    let extension = pool
        .get_extension_by_name("google.api.field_behavior")
        .expect("the extension is imported");
    let values = pool
        .get_enum_by_name("google.api.FieldBehavior")
        .expect("the enum is imported");
    let number = values
        .get_value_by_name(name)
        .expect("a behaviour")
        .number();
    let options = field.options();
    let behaviours = options.get_extension(&extension);
    behaviours
        .as_list()
        .unwrap_or_default()
        .contains(&FieldValue::EnumNumber(number))
}

/// Returns the gRPC path of the method.
pub fn path_of(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// Builds a method's request message from JSON.
pub fn message_of(method: &MethodDescriptor, request: Value) -> DynamicMessage {
    let shown = request.to_string();
    let message = DynamicMessage::deserialize(method.input(), request);
    message.unwrap_or_else(|e| panic!("{}({shown}): {e}", method.name()))
}

/// Builds a method's request in its wire format.
pub fn encode(method: &MethodDescriptor, request: Value) -> Bytes {
    message_of(method, request).encode_to_vec().into()
}

/// Converts a message to JSON, with default values included.
pub fn to_json(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("a message has a JSON form")
}

/// Returns the fields of the status's BadRequest field violations.
pub fn violations(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let request = details.bad_request();
    let violations = request
        .map(|r| r.field_violations.clone())
        .unwrap_or_default();
    violations
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

/// Asserts INVALID_ARGUMENT with `field` in the message and in the BadRequest details.
pub fn expect_invalid(status: &Status, field: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let fields = violations(status);
    assert!(
        fields.iter().any(|found| found == field),
        "{field} is not among {fields:?}: {status}"
    );
    assert!(
        status.message().contains(field),
        "{field} is not named: {status}"
    );
}

/// Asserts that the status has the details required of every API error: ErrorInfo, and those of its
/// code.
pub fn check_details(status: &Status) {
    let details = status.get_error_details();
    let info = details
        .error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo: {status}"));
    assert!(
        !info.reason.is_empty() && !info.domain.is_empty(),
        "{info:?}"
    );
    assert!(!status.message().is_empty(), "no message: {status:?}");
    match status.code() {
        Code::InvalidArgument => {
            assert!(details.bad_request().is_some(), "no BadRequest: {status}")
        }
        Code::FailedPrecondition => {
            assert!(
                details.precondition_failure().is_some(),
                "no PreconditionFailure: {status}"
            );
        }
        Code::NotFound | Code::AlreadyExists => {
            assert!(
                details.resource_info().is_some(),
                "no ResourceInfo: {status}"
            );
        }
        _ => {}
    }
}

/// A codec that passes message bytes through.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
