//! Paths to remote controllers when one of them falls silent: the others are not to notice.

mod common;

use std::time::{Duration, Instant};

use common::{
    Fixture, Initiator, Options, Relay, Resource, Target, eventually, name_of, namespace, nqn_of,
    subsystem, tcp_controller, tcp_path,
};
use opi_spdk::api::storage::ResetNvmeRemoteControllerRequest;
use opi_spdk::api::storage::nvme_remote_controller_service_client::NvmeRemoteControllerServiceClient;
use serde_json::json;
use tonic::Code;

#[tokio::test]
async fn a_reset_connects_the_working_path_once_and_names_the_one_that_is_silent() {
    let target = Target::start().await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let relay = Relay::to(export.port).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let object = json!({ "multipath": "NVME_MULTIPATH_MULTIPATH" });
    let remote = name_of(&of("NvmeRemoteController").created("", "r", object).await);
    let reset = async |limit| {
        let mut service = NvmeRemoteControllerServiceClient::new(client.channel());
        let name = remote.clone();
        let mut request = tonic::Request::new(ResetNvmeRemoteControllerRequest { name });
        request.set_timeout(limit);
        let begin = Instant::now();
        let outcome = service.reset_nvme_remote_controller(request).await;
        assert!(begin.elapsed() < limit, "{:?}", begin.elapsed());
        outcome
    };
    let limit = Duration::from_secs(3);
    reset(limit).await.expect("there is nothing to reset");
    for (id, port) in [("silent", relay.port), ("works", export.port)] {
        let path = tcp_path(port, &export.nqn);
        of("NvmePath").created(&remote, id, path).await;
    }
    let over = subsystem(&client, "again", json!({})).await;
    namespace(&client, &over, "rn1", json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("again"));
    let verified = async || host.verify(target.scratch(), 1).await;
    verified().await.expect("data is as it was written");
    reset(limit).await.expect("both paths come back");

    // What SPDK says comes to the log a moment later.
    let resets = async |count: usize| {
        let log = eventually("the resets are logged", limit, async || {
            let log = target.log();
            let seen = log.matches("Resetting controller successful").count();
            (seen >= count).then_some((seen, log))
        });
        let (seen, log) = log.await;
        assert_eq!(seen, count, "{log}");
    };
    resets(2).await;
    relay.fall_silent(true);
    for attempt in 1..=2 {
        let status = reset(limit).await.expect_err("one path is silent");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        let named = |port: u16| status.message().contains(&format!("127.0.0.1:{port} "));
        assert!(named(relay.port) && !named(export.port), "{status}");
        resets(2 + attempt).await;
    }
    verified().await.expect("I/O goes over the path that works");
    // It is silent still, and holds up no stop.
    target.stop();
    peer.stop();
}
