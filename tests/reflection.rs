//! What generic clients (grpcurl, health probes) rely on: reflection v1 and v1alpha, and grpc.health.v1.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Client, Target};
use opi_spdk::api;
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Returns the full names of the API's services.
fn services() -> Vec<String> {
    api::pool()
        .services()
        .map(|service| service.full_name().to_owned())
        .collect()
}

/// Both versions of reflection have the same messages, in two packages.
macro_rules! reflection {
    ($version:ident) => {
        mod $version {
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            use tonic_reflection::pb::$version::*;

            use super::*;

            async fn ask(client: &Client, what: MessageRequest) -> MessageResponse {
                try_ask(client, what).await.expect("an answer")
            }

            async fn try_ask(
                client: &Client,
                what: MessageRequest,
            ) -> Result<MessageResponse, Status> {
                let request = ServerReflectionRequest {
                    message_request: Some(what),
                    ..Default::default()
                };
                let requests = futures_util::stream::iter([request]);
                let mut reflection = ServerReflectionClient::new(client.channel());
                let answers = reflection
                    .server_reflection_info(Request::new(requests))
                    .await;
                let mut answers = answers.expect("reflection is served").into_inner();
                let answer = answers.message().await?.expect("not an empty stream");
                Ok(answer.message_response.expect("a response"))
            }

            async fn files(client: &Client, what: MessageRequest) -> Vec<FileDescriptorProto> {
                match ask(client, what).await {
                    MessageResponse::FileDescriptorResponse(answer) => {
                        let files = answer.file_descriptor_proto.iter();
                        files
                            .map(|bytes| {
                                FileDescriptorProto::decode(&bytes[..]).expect("a descriptor")
                            })
                            .collect()
                    }
                    other => panic!("no files: {other:?}"),
                }
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn lists_every_service_of_the_api() {
                let target = Target::start().await;
                let client = target.client().await;
                let answer = ask(&client, MessageRequest::ListServices(String::new())).await;
                let MessageResponse::ListServicesResponse(list) = answer else {
                    panic!("no list: {answer:?}")
                };
                let listed: BTreeSet<_> = list
                    .service
                    .into_iter()
                    .map(|service| service.name)
                    .collect();
                for service in services() {
                    assert!(
                        listed.contains(&service),
                        "{service} is not among {listed:?}"
                    );
                }
                assert!(listed.contains("grpc.health.v1.Health"), "{listed:?}");
            }

            /// The protocol has an error response for this; servers may also end the stream with the
            /// status.
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn unknown_symbols_are_not_found() {
                let target = Target::start().await;
                let symbol = MessageRequest::FileContainingSymbol("no.Such".into());
                let code = match try_ask(&target.client().await, symbol).await {
                    Ok(MessageResponse::ErrorResponse(error)) => Code::from(error.error_code),
                    Ok(other) => panic!("an unknown symbol is found: {other:?}"),
                    Err(status) => status.code(),
                };
                assert_eq!(code, Code::NotFound);
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn returns_the_descriptors_of_the_build() {
                let target = Target::start().await;
                let client = target.client().await;
                let known = FileDescriptorSet::decode(api::FILE_DESCRIPTOR_SET)
                    .expect("a set")
                    .file;
                let known: BTreeMap<_, _> = known
                    .into_iter()
                    .map(|file| (file.name().to_owned(), file))
                    .collect();
                for service in services() {
                    let found = files(
                        &client,
                        MessageRequest::FileContainingSymbol(service.clone()),
                    )
                    .await;
                    assert!(!found.is_empty(), "no file has {service}");
                    for file in found {
                        assert_eq!(
                            Some(&file),
                            known.get(file.name()),
                            "{} differs",
                            file.name()
                        );
                    }
                }
                // The messages of error details, which no service refers to.
                for detail in ["google.rpc.ErrorInfo", "google.rpc.BadRequest"] {
                    let symbol = MessageRequest::FileContainingSymbol(detail.into());
                    assert!(
                        !files(&client, symbol).await.is_empty(),
                        "no file has {detail}"
                    );
                }
                // Clients fetch imported files by name.
                for (name, file) in &known {
                    let found = files(&client, MessageRequest::FileByFilename(name.clone())).await;
                    assert!(found.contains(file), "{name} is not found");
                }
            }
        }
    };
}

reflection!(v1);
reflection!(v1alpha);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_covers_the_server_and_each_service() {
    let target = Target::start().await;
    let client = target.client().await;
    let mut health = HealthClient::new(client.channel());
    for service in [vec![String::new()], services()].concat() {
        let answer = health
            .check(HealthCheckRequest {
                service: service.clone(),
            })
            .await;
        let answer = answer.unwrap_or_else(|status| panic!("{service:?}: {status}"));
        assert_eq!(
            answer.into_inner().status(),
            ServingStatus::Serving,
            "{service:?}"
        );
    }
    let service = "no.such.Service".into();
    let unknown = health
        .check(HealthCheckRequest { service })
        .await
        .expect_err("the service is unknown");
    assert_eq!(unknown.code(), Code::NotFound);
}
