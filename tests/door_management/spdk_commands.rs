//! SPDK's own commands: every command is answered, and a client that disconnects releases its place.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Http, JsonRpc, Options, Target, eventually, free_port};
use crate::with_proxy;

/// Upper bound of a command that does not wait for another machine.
const SOON: Duration = Duration::from_secs(10);

/// Parameters of a discovery that waits for a service that does not exist, until it is stopped.
fn endless(name: &str) -> Value {
    json!({
        "name": name, "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
        "trsvcid": free_port().to_string(), "wait_for_attach": true,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_spdk_command_is_answered() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let connect = async || JsonRpc::connect(&socket).await.expect("the socket");
    let mut rpc = connect().await;
    for parameters in [Value::Null, json!({}), json!({ "enable": true })] {
        let call = rpc.call("nvmf_enable_ctrl_io_stats", parameters.clone());
        let answer = tokio::time::timeout(SOON, call).await;
        let error = answer.unwrap_or_else(|_| panic!("{parameters}: no answer"));
        let error = error.expect_err("trtype is required").to_string();
        assert!(error.contains("trtype"), "{error}");
    }
    let mut waiting = connect().await;
    let start = tokio::spawn(async move {
        let call = waiting.call("bdev_nvme_start_discovery", endless("d"));
        call.await
            .expect_err("the discovery is cancelled")
            .to_string()
    });
    let name = json!({ "name": "d" });
    // Stopping a discovery that has not been started yet fails: retry.
    let stopped = async || {
        rpc.call("bdev_nvme_stop_discovery", name.clone())
            .await
            .ok()
    };
    eventually("the service is stopped", SOON, stopped).await;
    let answer = tokio::time::timeout(SOON, start).await;
    let error = answer.expect("the start is answered").expect("no panic");
    assert!(error.contains("cancel"), "{error}");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn disconnected_proxy_clients_release_their_places() {
    const PLACES: usize = 16;
    let (target, address, socket) = with_proxy().await;
    // "admin:right"
    let basic = "Basic YWRtaW46cmlnaHQ=";
    let call = |method: &str, parameters: Value| {
        json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": parameters }).to_string()
    };
    let streams: Vec<TcpStream> = (0..PLACES)
        .map(|n| {
            let body = call("bdev_nvme_start_discovery", endless(&format!("d{n}")));
            let mut stream = TcpStream::connect(address).expect("the proxy accepts connections");
            let request = format!(
                "POST / HTTP/1.1\r\nhost: localhost\r\nauthorization: {basic}\r\n\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).expect("sent");
            stream
        })
        .collect();
    let mut rpc = JsonRpc::connect(&socket).await.expect("the socket");
    eventually("all discoveries are started", SOON, async || {
        let begun = rpc.call("bdev_nvme_get_discovery_info", json!({})).await;
        let begun = begun.expect("SPDK answers");
        (begun.as_array().map(Vec::len) == Some(PLACES)).then_some(())
    })
    .await;
    drop(streams);
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "spdk_get_version" }).to_string();
    let headers = [("authorization", basic)];
    let answer = Http(address).send("POST", "/", &headers, body.into()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for n in 0..PLACES {
        let name = json!({ "name": format!("d{n}") });
        let stopped = rpc.call("bdev_nvme_stop_discovery", name).await;
        stopped.unwrap_or_else(|error| panic!("{error}"));
    }
    target.stop();
}
