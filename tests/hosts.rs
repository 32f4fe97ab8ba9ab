//! Host access to a subsystem, changed while hosts are connected.

mod common;

use common::{Fixture, HOST, Options, Resource, Target, pcie_spec, subsystem};
use serde_json::json;
use tonic::Code;

const STRANGER: &str = "nqn.2022-09.io.spdk:a-stranger";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_host_no_longer_allowed_is_disconnected() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let stranger = export.initiator().with_host(STRANGER);
    let load = stranger.load(8).await;
    let one_host = json!({ "spec": { "hostnqn": HOST } });
    export
        .resource("NvmeSubsystem")
        .updated(&export.subsystem, one_host, Some(&["spec.hostnqn"]))
        .await;
    if let Ok(report) = load.ended().await {
        assert!(report.contains("completed with error"), "{report}");
    }
    stranger.identify().await.expect_err("the host is rejected");
    let host = export.initiator().with_host(HOST);
    host.verify(target.scratch(), 1)
        .await
        .expect("the allowed host can connect");
    export.remove().await;
    target.stop();
}

/// SPDK would reject every VM without an error for whoever created the controller.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_subsystem_for_one_host_rejects_pcie_controllers() {
    let target = Target::start_with(Options::hugepages()).await;
    let client = target.client().await;
    let subsystems = Resource::new(&client, "NvmeSubsystem");
    let controllers = Resource::new(&client, "NvmeController");
    let pcie = pcie_spec(0);

    let one_host = subsystem(&client, "one-host", json!({ "hostnqn": HOST })).await;
    let status = controllers
        .refused(&one_host, "pcie", pcie.clone(), Code::FailedPrecondition)
        .await;
    assert!(status.message().contains("hostnqn"), "{status}");

    let any = subsystem(&client, "any-host", json!({})).await;
    controllers.created(&any, "pcie", pcie).await;
    let object = json!({ "spec": { "hostnqn": HOST } });
    let mask = Some(["spec.hostnqn"].as_slice());
    subsystems
        .update_refused(&any, object, mask, Code::FailedPrecondition)
        .await;
    target.stop();
}
