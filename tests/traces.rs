//! Spans of calls as an OTLP collector receives them; and a collector that does not respond delays
//! nothing.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::Span;
use opi_spdk::api::storage::null_volume_service_client::NullVolumeServiceClient;
use opi_spdk::api::storage::{CreateNullVolumeRequest, NullVolume};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tonic::Request;

use common::{Collector, Http, Target, attribute, eventually, exporting_to};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Returns a request with this trace context in its metadata.
fn traced<T>(message: T, parent: &str, state: &str) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    for (key, value) in [("traceparent", parent), ("tracestate", state)] {
        metadata.insert(key, value.parse().expect("ASCII"));
    }
    request
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn create(target: &Target, id: &str, trace: Option<String>) -> u16 {
    let path = format!("/v1/nullVolumes?nullVolumeId={id}");
    let body = json!({ "block_size": 512, "blocks_count": 64 }).to_string();
    let trace = trace.as_deref().map(|trace| ("traceparent", trace));
    let headers: Vec<_> = trace.into_iter().collect();
    let http = Http(target.http);
    http.send("POST", &path, &headers, body.into()).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_a_span_of_its_clients_trace_with_its_waits() {
    let (collector, address) = Collector::start().await;
    let target = Target::start_with(exporting_to(address)).await;
    let parent = |flags: &str| Some(format!("00-{TRACE}-{PARENT}-{flags}"));
    assert_eq!(create(&target, "traced", parent("01")).await, 200);
    let (call, children) = collector.call("volumes/traced").await;
    assert_eq!(
        call.name,
        "opi_api.storage.v1.NullVolumeService/CreateNullVolume"
    );
    assert_eq!(
        (hex(&call.trace_id), hex(&call.parent_span_id)),
        (TRACE.to_owned(), PARENT.to_owned())
    );
    for (key, value) in [
        ("rpc.system.name", "grpc"),
        (
            "rpc.method",
            "opi_api.storage.v1.NullVolumeService/CreateNullVolume",
        ),
        ("rpc.response.status_code", "OK"),
        ("opi_spdk.protocol", "http"),
        ("client.address", "127.0.0.1"),
    ] {
        assert_eq!(attribute(&call, key).as_deref(), Some(value), "{key}");
    }
    for wanted in ["lock wait", "mailbox wait", "step ", "store commit"] {
        let found = children.iter().find(|of| of.name.starts_with(wanted));
        let found = found.unwrap_or_else(|| panic!("no {wanted:?} in {children:#?}"));
        assert_eq!(hex(&found.trace_id), TRACE, "{wanted}");
        // Two different clocks are compared; they agree to some microseconds.
        let slack = 200_000;
        assert!(
            found.start_time_unix_nano + slack >= call.start_time_unix_nano,
            "{wanted}"
        );
        assert!(
            found.end_time_unix_nano <= call.end_time_unix_nano + slack,
            "{wanted}"
        );
        assert!(
            found.start_time_unix_nano <= found.end_time_unix_nano,
            "{wanted}"
        );
    }
    let services = collector.services();
    assert_eq!(services, BTreeSet::from(["opi-spdk".to_owned()]));

    // Over gRPC, in a new trace whose ID is in the log.
    let client = target.client().await;
    let volumes = common::Resource::new(&client, "NullVolume");
    volumes
        .created(
            "",
            "alone",
            json!({ "block_size": 512, "blocks_count": 64 }),
        )
        .await;
    let (alone, _) = collector.call("volumes/alone").await;
    assert!(
        alone.parent_span_id.is_empty()
            && attribute(&alone, "opi_spdk.protocol").as_deref() == Some("grpc")
    );
    let id = hex(&alone.trace_id);
    assert!(target.log().contains(&id), "{id}");

    // Over gRPC with the client's trace context in the metadata.
    let mut service = NullVolumeServiceClient::new(client.channel());
    let volume = NullVolume {
        block_size: 512,
        blocks_count: 64,
        ..NullVolume::default()
    };
    let request = CreateNullVolumeRequest {
        null_volume: Some(volume),
        null_volume_id: "told".to_owned(),
    };
    let context = parent("01").expect("a header");
    let request = traced(request, &context, "vendor=opaque,other=1");
    service.create_null_volume(request).await.expect("created");
    let (told, children) = collector.call("volumes/told").await;
    assert_eq!(
        (hex(&told.trace_id), hex(&told.parent_span_id)),
        (TRACE.to_owned(), PARENT.to_owned())
    );
    assert_eq!(told.trace_state, "vendor=opaque,other=1");
    assert!(children.iter().all(|of| hex(&of.trace_id) == TRACE) && !children.is_empty());

    // An unsampled trace context, and an invalid one.
    assert_eq!(create(&target, "unsampled", parent("00")).await, 200);
    assert_eq!(
        create(&target, "broken", Some("00-zz-00-01".to_owned())).await,
        200
    );
    let (broken, _) = collector.call("volumes/broken").await;
    assert!(broken.parent_span_id.is_empty() && hex(&broken.trace_id) != TRACE);
    let line = eventually("the call's line", Duration::from_secs(10), async || {
        let log = target.log();
        let line = log.lines().find(|line| line.contains("volumes/broken"))?;
        Some(line.to_owned())
    })
    .await;
    assert!(line.contains("traceparent=\"malformed\""), "{line}");
    assert_eq!(target.log().matches("traceparent=").count(), 1);
    let spans = collector.spans();
    let is_unsampled =
        |span: &&Span| attribute(span, "opi_spdk.object").as_deref() == Some("volumes/unsampled");
    assert!(!spans.iter().any(|span| is_unsampled(&span)));

    // A retry, and a request that fails through the client's fault.
    assert_eq!(
        create(&target, "traced", parent("01")).await,
        200,
        "a repeated create is idempotent"
    );
    assert_eq!(
        Http(target.http)
            .send("DELETE", "/v1/volumes/absent", &[], vec![])
            .await
            .status,
        404
    );

    // Spans contain no request data except object names.
    let psk = "NVMeTLSkey-1:01:SFVTSEhVU0hIVVNISFVTSEhVU0hIVVNISFVTSEhVU0iVzQw6:";
    let calls = [("good", psk, "nvmeSubsystems/good"), ("bad", "HUSH", "bad")];
    for (id, psk, object) in calls {
        let spec = json!({
            "nqn": format!("nqn.2022-09.io.spdk:{id}"), "hostnqn": "nqn.2022-09.io.spdk:host",
            "psk": common::base64(psk),
        });
        let path = format!("/v1/nvmeSubsystems?nvmeSubsystemId={id}");
        let body = json!({ "spec": spec }).to_string();
        let answer = Http(target.http)
            .send("POST", &path, &[], body.into())
            .await;
        assert_eq!(answer.status == 200, id == "good", "{}", answer.body);
        collector.call(object).await;
    }
    let spans = collector.spans();
    let spans = format!("{spans:?}");
    for secret in ["HUSH", "SFVTSE", &common::base64(psk)] {
        assert!(!spans.contains(secret), "{secret}: {spans}");
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unresponsive_collector_blocks_no_call() {
    // The collector accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    blocks_no_call(silent.local_addr().expect("bound")).await;

    // Nothing listens: the port is taken, and connections are refused.
    let refusing = TcpSocket::new_v4().expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    refusing.bind(any).expect("a port");
    blocks_no_call(refusing.local_addr().expect("bound")).await;
}

/// Calls and the end of a target that exports to this address.
async fn blocks_no_call(collector: SocketAddr) {
    let mut target = Target::start_with(exporting_to(collector)).await;
    let begun = Instant::now();
    for n in 0..200 {
        assert_eq!(create(&target, &format!("v{n}"), None).await, 200);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    target.signal(rustix::process::Signal::TERM);
    let status = target.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}\n{}", target.log());
}
