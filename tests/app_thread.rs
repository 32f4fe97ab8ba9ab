//! SPDK's app thread stays on its initial reactor, whatever SPDK's own commands request.

mod common;

use std::path::Path;

use common::{Fixture, JsonRpc, Options, Target};
use serde_json::{Value, json};

/// Returns the app thread's reactor and thread ID.
async fn app_thread(socket: &Path) -> (u64, u64) {
    let mut rpc = JsonRpc::connect(socket).await.expect("SPDK listens");
    let reactors = rpc.call("framework_get_reactors", Value::Null).await;
    let reactors = reactors.expect("SPDK answers");
    let found = reactors["reactors"].as_array().expect("a list").iter();
    let found = found.flat_map(|reactor| {
        let threads = reactor["lw_threads"].as_array().expect("a list").iter();
        threads.map(move |thread| (reactor["lcore"].as_u64(), thread))
    });
    let mut found = found.filter(|(_, thread)| thread["name"] == "app_thread");
    let (lcore, thread) = found.next().expect("the app thread exists");
    let number = thread["id"].as_u64().expect("a number");
    (lcore.expect("a number"), number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_app_thread_stays_on_its_reactor() {
    let (mut options, socket) = Options::default().with_rpc();
    options.cores = Some("0,1");
    let target = Target::start_with(options).await;
    let first = Fixture::tcp(&target, 8).await;
    let (lcore, number) = app_thread(&socket).await;

    for mask in ["[1]", "[0]", "[1]"] {
        let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK listens");
        let moved = json!({ "id": number, "cpumask": mask });
        // SPDK may accept the new mask, but the thread is bound to its reactor.
        let _ = rpc.call("thread_set_cpumask", moved).await;
        let second = Fixture::tcp(&target, 8).await;
        assert_eq!(app_thread(&socket).await, (lcore, number), "{mask}");
        second.remove().await;
    }
    first.remove().await;
    target.stop();
}
