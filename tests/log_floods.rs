//! What SPDK logs for each of many I/Os or calls is a few lines and a count in our log.

mod common;

use std::time::Duration;

use common::{JsonRpc, Options, Target, eventually};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_same_line_again_and_again_is_counted() {
    const CALLS: usize = 200;
    let (options, socket) = Options::default().with_rpc();
    let mut target = Target::start_with(options).await;
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK listens");
    // Its name has no end that SPDK would take.
    let wrong = json!({ "nqn": "nqn.wrong" });
    for _ in 0..CALLS {
        let refused = rpc.call("nvmf_create_subsystem", wrong.clone()).await;
        assert!(refused.is_err(), "it is no NQN");
    }
    let lines = |log: &str| {
        let lines = log.lines().filter(|line| !line.contains("more such lines"));
        lines.filter(|line| line.contains("nqn.wrong")).count()
    };
    eventually("the first is logged", Duration::from_secs(2), async || {
        (lines(&target.log()) > 0).then_some(())
    })
    .await;
    target.stop_with(rustix::process::Signal::TERM);
    let log = target.log();
    assert!(lines(&log) <= 9, "{} lines:\n{log}", lines(&log));
    let surplus = format!("{} more such lines", CALLS - 3);
    assert!(log.contains(&surplus), "{log}");
}
