//! Who may connect to a subsystem, when that changes under those who are connected.

mod common;

use common::{Fixture, Target};
use serde_json::json;

const HOST: &str = "nqn.2022-09.io.spdk:the-host";
const STRANGER: &str = "nqn.2022-09.io.spdk:a-stranger";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_host_that_may_no_longer_connect_is_disconnected_and_one_that_may_comes_back() {
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
    stranger.identify().await.expect_err("it is kept out");
    let host = export.initiator().with_host(HOST);
    host.verify(target.scratch(), 1).await.expect("it may");
    export.remove().await;
    target.stop();
}
