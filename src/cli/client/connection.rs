//! The connection to the server, and calls with messages known only through their descriptors.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::Failure;
use super::failure::plain;

/// Default address of the server's gRPC.
const DEFAULT: &str = "127.0.0.1:50051";

/// Maximum size of an answer, in bytes: far above any answer of this API.
const ANSWER_MAX: usize = 64 << 20;

/// Address of the server and credentials of the client.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Connect {
    /// Address and port of the server's gRPC, or unix:PATH for its socket [default: 127.0.0.1:50051]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<String>,
    /// TLS: files of the client's certificate, its key and the authority of the server's certificate
    #[arg(long, value_name = "CERT:KEY:CA")]
    tls: Option<String>,
    /// File with the token that authenticates this client
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The name in the server's certificate [default: the host of --addr]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Seconds to wait for each answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

/// The channel, with the token added to each call if there is one.
pub(super) type Service = InterceptedService<Channel, Token>;

/// The value of `authorization`, marked as secret.
#[derive(Clone, Default)]
pub(super) struct Token(Option<HeaderValue>);

/// A connection to one server.
#[derive(Clone)]
pub(super) struct Connection {
    service: Service,
    address: String,
    timeout: Duration,
    has_tls: bool,
}

impl Connect {
    /// Connects to the server.
    ///
    /// # Errors
    /// [`Failure::Here`] for unusable settings, [`Failure::Unreachable`] if no connection is made.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let address = match &self.addr {
            Some(address) => address.clone(),
            None => local(std::env::var("OPI_SPDK_GRPC_ADDR").ok()),
        };
        let timeout = Duration::from_secs(self.timeout);
        let token = self.token()?;
        let endpoint = self.endpoint(&address)?.connect_timeout(timeout);
        let unreachable = |reason: String| Failure::Unreachable {
            address: plain(&address),
            reason,
        };
        let connected = tokio::time::timeout(timeout, endpoint.connect()).await;
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(unreachable(deepest(&error))),
            Err(_) => return Err(unreachable(format!("nothing within {timeout:?}"))),
        };
        Ok(Connection {
            service: InterceptedService::new(channel, token),
            address,
            timeout,
            has_tls: self.tls.is_some(),
        })
    }

    /// Reads the token of --token-file.
    ///
    /// # Errors
    /// [`Failure::Here`] for a file without a usable token.
    pub fn token(&self) -> Result<Token, Failure> {
        let Some(file) = &self.token_file else {
            return Ok(Token::default());
        };
        let fail =
            |why: &dyn Display| Failure::Here(format!("token file {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| fail(&error))?;
        let value = HeaderValue::from_str(&format!("Bearer {}", text.trim()));
        let mut value = value.map_err(|_| fail(&"it is no line of text"))?;
        value.set_sensitive(true);
        Ok(Token(Some(value)))
    }

    /// The three files of --tls.
    ///
    /// # Errors
    /// [`Failure::Usage`] if the value is not three paths.
    pub fn tls_files(&self) -> Result<Option<[PathBuf; 3]>, Failure> {
        let Some(files) = &self.tls else {
            return Ok(None);
        };
        match files.split(':').collect::<Vec<_>>()[..] {
            [certificate, key, ca] => Ok(Some([certificate, key, ca].map(PathBuf::from))),
            _ => Err(Failure::Usage(format!(
                "--tls {files:?} is not three files, certificate:key:ca"
            ))),
        }
    }

    /// The name in the server's certificate, if given.
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, Failure> {
        let bad =
            |why: String| Failure::Usage(format!("--addr {address:?} is no HOST:PORT: {why}"));
        if let Some(path) = address.strip_prefix("unix:") {
            return local_endpoint(path).map_err(bad);
        }
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port || address.contains('/') {
            return Err(bad(
                "such as 192.0.2.1:50051 or [2001:db8::1]:50051".to_owned()
            ));
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Channel::from_shared(format!("{scheme}://{address}"));
        let endpoint = endpoint.map_err(|error| bad(error.to_string()))?;
        let Some([certificate, key, ca]) = self.tls_files()? else {
            return Ok(endpoint);
        };
        let read = |file: PathBuf| {
            let fail = |error| Failure::Here(format!("tls file {}: {error}", file.display()));
            std::fs::read(&file).map_err(fail)
        };
        let identity = Identity::from_pem(read(certificate)?, read(key)?);
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(ca)?))
            .identity(identity);
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        let fail = |error| Failure::Here(format!("tls: {error}"));
        endpoint.tls_config(tls).map_err(fail)
    }
}

/// Endpoint of the server's Unix socket.
fn local_endpoint(path: &str) -> Result<Endpoint, String> {
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display()));
    endpoint.map_err(|error| error.to_string())
}

/// The address at which a server with this setting is reached from its own machine.
fn local(setting: Option<String>) -> String {
    reachable(setting, DEFAULT)
}

/// Like [`local`], with another default.
pub(super) fn reachable(setting: Option<String>, default: &str) -> String {
    let address = setting.filter(|text| !text.is_empty());
    let address = address.unwrap_or_else(|| default.to_owned());
    match address.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => address,
    }
}

impl Token {
    /// The value of `authorization`, if there is a token.
    pub fn header(&self) -> Option<HeaderValue> {
        self.0.clone()
    }
}

impl Interceptor for Token {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(value) = &self.0 else {
            return Ok(request);
        };
        let (mut metadata, extensions, message) = request.into_parts();
        let mut headers = metadata.into_headers();
        headers.insert(AUTHORIZATION, value.clone());
        metadata = MetadataMap::from_headers(headers);
        Ok(Request::from_parts(metadata, extensions, message))
    }
}

impl Connection {
    /// The service for generated clients.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// Replaces the status of a broken connection by one that explains the cause.
    pub fn explained(&self, status: Status) -> Status {
        explained(status, self.has_tls)
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The server's status, or a status for a connection that broke or timed out.
    pub async fn call(
        &self,
        method: &MethodDescriptor,
        message: DynamicMessage,
    ) -> Result<DynamicMessage, Status> {
        let mut client =
            tonic::client::Grpc::new(self.service.clone()).max_decoding_message_size(ANSWER_MAX);
        let call = async {
            let ready = client.ready().await;
            ready.map_err(|error| Status::unavailable(deepest(&error)))?;
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            let path = path
                .parse()
                .map_err(|_| Status::internal(format!("{path:?} is no path")))?;
            let mut request = Request::new(message);
            request.set_timeout(self.timeout);
            client.unary(request, path, Dynamic(method.output())).await
        };
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.explained(status)),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "{} did not answer within {:?}; a change may still come to its end",
                self.address, self.timeout
            ))),
        }
    }
}

/// Recognizes a status made locally by the transport, since only these have a source: the connection broke. With TLS
/// 1.3 the server refuses a client certificate only after the client has finished the handshake.
fn explained(status: Status, has_tls: bool) -> Status {
    let Some(source) = std::error::Error::source(&status) else {
        return status;
    };
    let reason = deepest(source);
    match status.code() {
        Code::DeadlineExceeded => Status::deadline_exceeded(reason),
        Code::Internal if !has_tls => Status::unavailable(format!(
            "{reason}: it speaks no gRPC, or it has TLS and wants --tls"
        )),
        _ => Status::unavailable(reason),
    }
}

/// The innermost source of an error: the outer ones say only "transport error".
fn deepest(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    plain(&innermost.to_string())
}

/// Codec for messages of one descriptor.
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = item.encode(buffer);
        encoded.map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let decoded = DynamicMessage::decode(self.0.clone(), buffer);
        decoded
            .map(Some)
            .map_err(|error| Status::internal(format!("the answer cannot be read: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_this_machine_is_found_by_its_own_setting() {
        let of = |text: &str| local(Some(text.to_owned()));
        assert_eq!(of("0.0.0.0:50051"), "127.0.0.1:50051");
        assert_eq!(of("[::]:7"), "[::1]:7");
        assert_eq!(of("192.0.2.1:7"), "192.0.2.1:7");
        assert_eq!((of(""), local(None)), (DEFAULT.into(), DEFAULT.into()));
    }
}
