//! A client that knows the API by its descriptors: requests and answers are JSON, a method goes by
//! its name, so that one test can run over every kind.

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

/// No call takes longer: a hang is an error of the program under test.
const BOUND: Duration = Duration::from_secs(15);

/// A connection to the program under test.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    token: Option<String>,
}

impl Client {
    /// `None` when nobody listens there.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect_timeout(BOUND).connect().await.ok()?;
        Some(Self {
            channel,
            token: None,
        })
    }

    /// The same connection, with calls that have this token.
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            channel: self.channel(),
            token: Some(token.to_owned()),
        }
    }

    /// For the clients of other services.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Whether grpc.health.v1 says so.
    pub async fn is_serving(&self) -> bool {
        let request = HealthCheckRequest::default();
        let answer = HealthClient::new(self.channel()).check(request).await;
        answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
    }

    /// Calls a method of the API. A request that is not of the method's type is a fault of the test.
    pub async fn call(&self, method: &str, request: Value) -> Result<Value, Status> {
        let method = find_method(method);
        let request = message_of(&method, request);
        Ok(to_json(&self.call_method(&method, &request).await?))
    }

    /// The same with messages.
    pub async fn call_method(
        &self,
        method: &MethodDescriptor,
        request: &DynamicMessage,
    ) -> Result<DynamicMessage, Status> {
        let bytes = request.encode_to_vec().into();
        let answer = self.call_raw(&path_of(method), bytes).await?;
        Ok(DynamicMessage::decode(method.output(), answer).expect("an answer of its type"))
    }

    /// The same, for a call that must succeed.
    pub async fn ok(&self, method: &str, request: Value) -> Value {
        let shown = request.to_string();
        let answer = self.call(method, request).await;
        answer.unwrap_or_else(|status| panic!("{method}({shown}): {status}"))
    }

    /// The same, for a call that must fail with this code; gives the status.
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

    /// Sends these bytes as the request message.
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
    /// Begins a call whose request never comes; it ends with the connection.
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

/// The method of this name, whatever its service.
pub fn find_method(name: &str) -> MethodDescriptor {
    let mut methods = api::pool()
        .services()
        .flat_map(|s| s.methods().collect::<Vec<_>>());
    let found = methods.find(|method| method.name() == name);
    found.unwrap_or_else(|| panic!("the API has no method {name}"))
}

/// Whether the options of the field say so: REQUIRED, OUTPUT_ONLY...
pub fn has_behaviour(field: &FieldDescriptor, name: &str) -> bool {
    let pool = api::pool();
    let extension = pool
        .get_extension_by_name("google.api.field_behavior")
        .expect("it is imported");
    let values = pool
        .get_enum_by_name("google.api.FieldBehavior")
        .expect("it is imported");
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

/// Where gRPC has the method.
pub fn path_of(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// A request.
pub fn message_of(method: &MethodDescriptor, request: Value) -> DynamicMessage {
    let shown = request.to_string();
    let message = DynamicMessage::deserialize(method.input(), request);
    message.unwrap_or_else(|e| panic!("{}({shown}): {e}", method.name()))
}

/// A request in its wire form.
pub fn encode(method: &MethodDescriptor, request: Value) -> Bytes {
    message_of(method, request).encode_to_vec().into()
}

/// A message in its JSON form, with all its fields.
pub fn to_json(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("a message has a JSON form")
}

/// The fields that a status finds at fault.
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

/// An INVALID_ARGUMENT that names `field`, in its message and its details.
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

/// Every error of the API says why, for programs too.
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

/// Bytes as they are.
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
