//! Metrics of the paths of remote controllers.

use std::time::Duration;

use serde_json::json;

use crate::common::{
    Fixture, Initiator, Options, Relay, Resource, Scrape, Target, eventually, name_of, namespace,
    nqn_of, remote_controller, subsystem, tcp_controller, tcp_path,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn io_is_counted_by_path_and_what_was_counted_stays() {
    let target = Target::start_with(Options::default()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let client = target.client().await;
    let remote = remote_controller(&client, "r", "MULTIPATH").await;
    let relay = Relay::to(export.port).await;
    let paths = Resource::new(&client, "NvmePath");
    let mut names = Vec::new();
    for (id, port) in [("direct", export.port), ("relayed", relay.port)] {
        let path = paths
            .created(&remote, id, tcp_path(port, &export.nqn))
            .await;
        names.push(name_of(&path));
    }
    let over = subsystem(&client, "again", json!({})).await;
    let shown = namespace(&client, &over, "rn1", json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("again"));
    host.verify(target.scratch(), 1)
        .await
        .expect("patterns match");

    let kinds = ["read_operations", "write_bytes", "read_seconds"];
    let of = |scrape: &Scrape, path: &str| {
        kinds.map(|kind| {
            let labels = [("path", path), ("controller", remote.as_str())];
            scrape.value(&format!("opi_spdk_path_{kind}_total"), &labels)
        })
    };
    let scrape = Scrape::of(&target).await;
    let counted: Vec<_> = names.iter().map(|path| of(&scrape, path)).collect();
    for (path, counted) in names.iter().zip(&counted) {
        assert!(
            counted.iter().all(|value| *value > 0.0),
            "{path}: {counted:?}"
        );
        let stats = paths.stats(path).await;
        let told = stats["read_ops_count"].as_f64().expect("a number");
        assert_eq!(told, counted[0], "{path}");
        let works = [("path", path.as_str())];
        assert_eq!(scrape.value("opi_spdk_path_connected", &works), 1.0);
    }

    // Deleting the namespace destroys the data path's I/O channels; their counts must be kept.
    Resource::new(&client, "NvmeNamespace")
        .deleted(&shown)
        .await;
    let after = Scrape::of(&target).await;
    for (path, counted) in names.iter().zip(&counted) {
        let now = of(&after, path);
        let is_kept = now.iter().zip(counted).all(|(now, before)| now >= before);
        assert!(is_kept, "{path}: {counted:?} before, {now:?} after");
    }

    drop(relay);
    eventually("the path drops", Duration::from_secs(20), async || {
        let scrape = Scrape::of(&target).await;
        let dropped = [("path", names[1].as_str())];
        (scrape.value("opi_spdk_path_connected", &dropped) == 0.0).then_some(())
    })
    .await;
    target.stop();
    peer.stop();
}
