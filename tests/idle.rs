//! Reactors without work sleep, and are awake when there is some.

mod common;

use std::time::{Duration, Instant};

use common::{Options, Resource, Scrape, Target, malloc, name_of, tcp_export, unique};
use serde_json::json;

/// How long a reactor is watched.
const WATCHED: Duration = Duration::from_secs(3);

/// Returns for which part of the time the reactor of this core has slept meanwhile.
async fn asleep(target: &Target, core: &str) -> f64 {
    let slept = async || {
        let scrape = Scrape::of(target).await;
        let of = [("core", core)];
        scrape.value("opi_spdk_reactor_asleep_seconds_total", &of)
    };
    let (before, begun) = (slept().await, Instant::now());
    tokio::time::sleep(WATCHED).await;
    (slept().await - before) / begun.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reactors_sleep_while_hosts_are_idle_and_serve_them_at_once() {
    let mut options = Options::default();
    options.cores = Some("0,1");
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let mut volumes = Vec::new();
    for _ in 0..20 {
        volumes.push(malloc(&client, &unique("volume"), 1).await);
    }
    let identity = tcp_export(&client, &volumes).await;
    let mut hosts = identity.hosts(10);
    for core in ["0", "1"] {
        let part = asleep(&target, core).await;
        assert!(part > 0.5, "core {core}: {part}");
    }
    // Queues of both reactors. The time limit of the read is one of the host's.
    for (_, io) in &mut hosts {
        assert_eq!(io.read(1, 0, 1).expect("data").len(), 512);
    }
    drop(hosts);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_volume_with_a_limit_lets_its_reactor_sleep() {
    let target = Target::start_with(Options::default().alone()).await;
    let client = target.client().await;
    let base = malloc(&client, &unique("base"), 1).await;
    let limits = json!({
        "volume_name_ref": base,
        "limits": { "max": { "rw_iops_kiops": 10 } },
    });
    let volumes = Resource::new(&client, "QosVolume");
    let limited = name_of(&volumes.created("", &unique("limited"), limits).await);
    let identity = tcp_export(&client, &[limited]).await;
    let mut hosts = identity.hosts(1);
    hosts[0].1.read(1, 0, 1).expect("data");
    let part = asleep(&target, "0").await;
    assert!(part > 0.5, "{part}");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reactor_that_is_to_poll_does_not_sleep() {
    let target = Target::start_with(Options::default().alone().args(["--idle", "busy"])).await;
    assert_eq!(asleep(&target, "0").await, 0.0);
    target.stop();
}
