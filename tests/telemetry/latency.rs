//! Latency histograms per volume.

use serde_json::json;

use crate::common::{
    Initiator, Options, Resource, Scrape, Target, malloc, namespace, nqn_of, subsystem,
    tcp_controller,
};

const METRIC: &str = "opi_spdk_volume_latency_seconds";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_histogram_never_falls() {
    let target = Target::start_with(Options::default()).await;
    let client = target.client().await;
    // The first scrape enables the histograms: I/O channels opened after it count into the same buckets.
    let volume = malloc(&client, "counted", 16).await;
    let labels = [("volume", volume.as_str())];
    assert_eq!(
        Scrape::of(&target)
            .await
            .value(&format!("{METRIC}_count"), &labels),
        0.0
    );
    let exported = subsystem(&client, "counted", json!({})).await;
    let (_, port) = tcp_controller(&client, &exported).await;
    let initiator = Initiator::tcp(port, &nqn_of("counted"));
    let namespaces = Resource::new(&client, "NvmeNamespace");
    let mut before = 0.0;
    for _ in 0..2 {
        let shown = namespace(&client, &exported, &volume, json!({})).await;
        initiator
            .verify(target.scratch(), 1)
            .await
            .expect("patterns match");
        let with = Scrape::of(&target).await;
        let count = with.value(&format!("{METRIC}_count"), &labels);
        let of =
            |kind: &str| with.value(&format!("opi_spdk_volume_{kind}_operations_total"), &labels);
        // Resets and flushes are counted too.
        assert!(count >= of("read") + of("write"), "{count}");
        assert!(count > before, "{count}, {before}");
        let sum = with.value(&format!("{METRIC}_sum"), &labels);
        let (least, most) = (sum / count > 0.5e-6, sum / count < 1.0);
        assert!(least && most, "{} s each", sum / count);
        // Deleting the namespace destroys the data path's I/O channels; their counts must be kept.
        namespaces.deleted(&shown).await;
        let after = Scrape::of(&target).await;
        before = after.value(&format!("{METRIC}_count"), &labels);
        assert!(before >= count, "{count} before, {before} after");
    }
    target.stop();
}
