//! The connection to the server, and calls whose messages are known by their descriptors alone.

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

/// Where the server is, if nothing says so.
const DEFAULT: &str = "127.0.0.1:50051";

/// Most bytes of an answer: what is more is no answer of this API.
const ANSWER_MAX: usize = 64 << 20;

/// Where the server is, and how to reach it.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Connect {
    /// Address and port of the server's gRPC, or unix:PATH for its socket [default: 127.0.0.1:50051]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<String>,
    /// TLS: files of the client's certificate, its key and the authority of the server's certificate
    #[arg(long, value_name = "CERT:KEY:CA")]
    tls: Option<String>,
    /// File with the token that the server knows this client by
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The name that the server's certificate is for [default: that of --addr]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Seconds to wait for each answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

/// What sends calls, with the token where there is one.
pub(super) type Service = InterceptedService<Channel, Token>;

/// The value of `authorization`, marked as secret.
#[derive(Clone, Default)]
pub(super) struct Token(Option<HeaderValue>);

/// A connection.
#[derive(Clone)]
pub(super) struct Connection {
    service: Service,
    address: String,
    timeout: Duration,
    has_tls: bool,
}

impl Connect {
    /// Connects.
    ///
    /// # Errors
    /// [`Failure::Here`] for settings that cannot be, [`Failure::Unreachable`].
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

    /// The token of --token-file.
    ///
    /// # Errors
    /// [`Failure::Here`] for a file that has none.
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

    /// The files of --tls.
    ///
    /// # Errors
    /// [`Failure::Usage`] for what is not three files.
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

    /// The name that the server's certificate is for, if it was given.
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

/// The server's socket on this machine.
fn local_endpoint(path: &str) -> Result<Endpoint, String> {
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display()));
    endpoint.map_err(|error| error.to_string())
}

/// Where a server with this setting is reached from its own machine.
fn local(setting: Option<String>) -> String {
    reachable(setting, DEFAULT)
}

/// The same, with another default.
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
    /// For `authorization`, if there is one.
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
    /// For clients of single services.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// The status, in words that tell of a connection that broke.
    pub fn explained(&self, status: Status) -> Status {
        explained(status, self.has_tls)
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The server's answer, or that there is none.
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

/// A status that is none of the server's, but tells that the connection broke: with TLS 1.3 the server refuses
/// a certificate only after the client is done. Only such have a source.
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

/// The innermost of an error's reasons: the others say "transport error".
fn deepest(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    plain(&innermost.to_string())
}

/// Messages of one descriptor.
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
