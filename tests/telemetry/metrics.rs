//! `GET /metrics`: the values equal those of the API, with any number of scrapers.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;

use crate::common::nvme_tcp::{Command, Digests, Identity};
use crate::common::{Fixture, OPEN_METRICS, Options, Scrape, Target, eventually, get_text};

const DASHBOARD: &str = include_str!("../../deploy/grafana/dashboard.json");
const DOCS: &str = include_str!("../../docs/observability.md");
const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const RATES: &str = include_str!("../../deploy/prometheus/rates.yml");
const OTHER_NAMES: &str = include_str!("../../deploy/prometheus/ceph-nvmeof.yml");

/// NVM command set: Flush.
const FLUSH: u8 = 0x00;

/// Returns the names of metrics in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    // Metrics of TLS are absent in this test.
    let is_name = |word: &&str| {
        (word.starts_with("opi_spdk_") && !word.starts_with("opi_spdk_tls_"))
            || word.starts_with("process_")
    };
    words.filter(is_name).map(str::to_owned).collect()
}

/// Returns the names of metrics that docs/observability.md has, as patterns: a name that begins with `_` continues the
/// one before it from some `_` on.
fn documented() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for row in DOCS.lines().filter(|line| line.starts_with("| `")) {
        let mut whole = String::new();
        for name in row.split('`').skip(1).step_by(2) {
            let is_name = ["opi_spdk_", "process_", "_"]
                .iter()
                .any(|of| name.starts_with(of));
            for name in expand(name).into_iter().filter(|_| is_name) {
                if !name.starts_with('_') {
                    whole.clone_from(&name);
                }
                found.push((whole.clone(), name));
            }
        }
    }
    found
}

/// Expands `a{b,c}d` to `abd` and `acd`, for each pair of braces.
fn expand(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else {
        return vec![name.to_owned()];
    };
    let (choices, after) = rest.split_once('}').expect("the brace is closed");
    let all = choices
        .split(',')
        .flat_map(|of| expand(&format!("{before}{of}{after}")));
    all.collect()
}

/// Each family of a scrape is in docs/observability.md.
fn every_family_is_documented(scrape: &Scrape) {
    let documented = documented();
    for (family, kind) in &scrape.families {
        let name = match &**kind {
            "counter" => format!("{family}_total"),
            _ => family.clone(),
        };
        let is_it = |(whole, of): &(String, String)| {
            let before = name.strip_suffix(&**of).filter(|_| of.starts_with('_'));
            *of == name || before.is_some_and(|before| whole.starts_with(&format!("{before}_")))
        };
        assert!(
            documented.iter().any(is_it),
            "{name} is not in docs/observability.md"
        );
    }
}

/// While a host does I/O, its operations are counted by name, and so are its connections.
async fn connections_and_host_io_are_counted(target: &Target, subsystem: &[(&str, &str)]) {
    let operations = eventually(
        "the host's I/O is counted",
        Duration::from_secs(5),
        async || {
            let scrape = Scrape::of(target).await;
            let queues = scrape.value("opi_spdk_connections", &[("door", "nvme_tcp")]);
            assert_eq!(queues, scrape.value("opi_spdk_host_queues", subsystem));
            let operations = scrape.value("opi_spdk_host_operations_total", subsystem);
            (operations > 0.0 && queues >= 2.0).then_some(operations)
        },
    )
    .await;
    eventually(
        "the host's operations increase",
        Duration::from_secs(5),
        async || {
            let scrape = Scrape::of(target).await;
            (scrape.value("opi_spdk_host_operations_total", subsystem) > operations).then_some(())
        },
    )
    .await;
}

/// A host's flushes are counted individually.
async fn flushes_are_counted(target: &Target, export: &Fixture) {
    let counted = async || {
        let volume = [("volume", export.volume.as_str())];
        let scrape = Scrape::of(target).await;
        scrape.value("opi_spdk_volume_flush_operations_total", &volume)
    };
    let before = counted().await;
    tokio::task::block_in_place(|| {
        let identity = Identity::new(export.port, &export.nqn);
        let admin = identity.admin(Digests::default());
        let mut queue = identity.io(&admin, 1);
        for _ in 0..3 {
            let flush = Command::new(FLUSH, queue.cid()).nsid(1);
            let answer = queue.call(flush, &[]).expect("the flush is answered");
            assert_eq!(answer.status(), 0);
        }
    });
    assert_eq!(counted().await, before + 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_match_the_api_and_cover_dashboard_and_alerts() {
    let target = Target::start_with(Options::default()).await;
    let export = Fixture::tcp(&target, 16).await;
    let subsystem = [("subsystem", export.subsystem.as_str())];
    let load = export.load(2).await;
    eventually("the host is counted", Duration::from_secs(5), async || {
        let scrape = Scrape::of(&target).await;
        (scrape.value("opi_spdk_subsystem_hosts_connected", &subsystem) >= 1.0).then_some(())
    })
    .await;
    connections_and_host_io_are_counted(&target, &subsystem).await;
    drop(load);
    let initiator = export.initiator();
    initiator
        .verify(target.scratch(), 1)
        .await
        .expect("patterns match");
    eventually("the host has gone", Duration::from_secs(10), async || {
        let scrape = Scrape::of(&target).await;
        (scrape.value("opi_spdk_subsystem_hosts_connected", &subsystem) == 0.0).then_some(())
    })
    .await;

    flushes_are_counted(&target, &export).await;

    let volume = [("volume", export.volume.as_str())];
    let stats = export.resource("MallocVolume").stats(&export.volume).await;
    let scrape = Scrape::of(&target).await;
    for (metric, counter) in [
        ("read_operations", "read_ops_count"),
        ("read_bytes", "read_bytes_count"),
        ("write_operations", "write_ops_count"),
        ("write_bytes", "write_bytes_count"),
        ("unmap_operations", "unmap_ops_count"),
    ] {
        let told = scrape.value(&format!("opi_spdk_volume_{metric}_total"), &volume);
        let counted = stats[counter].as_f64().expect("a number");
        // The API's counters saturate at 32 bits.
        let is_same = told == counted || (counted == f64::from(i32::MAX) && told > counted);
        assert!(is_same, "{metric}: {told}, {counted}");
        assert!(told > 0.0 || metric == "unmap_operations", "{metric}");
    }
    let value = |name: &str, labels: &[(&str, &str)]| scrape.value(name, labels);
    assert!(value("opi_spdk_volume_read_seconds_total", &volume) > 0.0);
    assert_eq!(
        value("opi_spdk_volume_size_bytes", &volume),
        f64::from(16 << 20)
    );
    assert_eq!(value("opi_spdk_subsystem_namespaces", &subsystem), 1.0);
    assert_eq!(
        value(
            "opi_spdk_objects",
            &[("kind", "MallocVolume"), ("condition", "applied")]
        ),
        1.0
    );
    let core = [("core", "0")];
    assert!(value("opi_spdk_reactor_busy_seconds_total", &core) > 0.0);
    assert!(value("opi_spdk_reactor_idle_seconds_total", &core) > 0.0);
    assert!(value("opi_spdk_reactor_last_turn_seconds", &core) < 1.0);
    let created = [
        (
            "method",
            "opi_api.storage.v1.MallocVolumeService/CreateMallocVolume",
        ),
        ("code", "OK"),
    ];
    assert_eq!(value("opi_spdk_rpc_duration_seconds_count", &created), 1.0);
    assert!(value("opi_spdk_connections", &[("door", "management")]) >= 1.0);
    let shown = [("volume", export.volume.as_str()), subsystem[0]];
    assert_eq!(value("opi_spdk_namespace_info", &shown), 1.0);
    // The pools have the configured number of buffers, and completed I/O holds none.
    for (size, buffers) in [("8KiB", 8192.0), ("132KiB", 1024.0)] {
        let of = |state| {
            let labels = [("size", size), ("state", state)];
            value("opi_spdk_iobuf_buffers", &labels)
        };
        let (free, kept) = (of("free"), of("kept"));
        assert!(free > 0.0 && free + kept + of("used") == buffers, "{size}");
    }
    let bdev = [("module", "bdev"), ("size", "8KiB")];
    assert_eq!(value("opi_spdk_iobuf_waits_total", &bdev), 0.0);
    assert!(value("opi_spdk_control_steps_total", &[]) > 0.0);
    // A step of many milliseconds at each start.
    let long = scrape.long_steps();
    assert!(
        long.iter().any(|name| name.contains("program::set_up")),
        "{long:?}"
    );
    for count in [
        "commits_total",
        "syncs_total",
        "sync_seconds_total",
        "size_bytes",
        "replay_seconds",
    ] {
        assert!(
            value(&format!("opi_spdk_store_{count}"), &[]) > 0.0,
            "{count}"
        );
    }
    assert_eq!(value("opi_spdk_scrape_complete", &[]), 1.0);

    // Every metric of the dashboard, alerts and rules exists.
    let there = scrape.names();
    for (what, text) in [
        ("dashboard", DASHBOARD),
        ("alerts", ALERTS),
        ("rates", RATES),
        ("other names", OTHER_NAMES),
    ] {
        let shown = names_in(text);
        assert!(shown.len() > 8, "{what}: {shown:?}");
        let absent: Vec<_> = shown.difference(&there).collect();
        assert!(absent.is_empty(), "{what} uses missing metrics: {absent:?}");
    }
    serde_json::from_str::<Value>(DASHBOARD).expect("JSON");

    every_family_is_documented(&scrape);

    // The older text format.
    let (status, text) = get_text(&target, "/metrics", "text/plain").await;
    assert_eq!(status, 200);
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    Scrape::parse(&text, false);

    // Concurrent scrapes share a reading, and all are answered, though strangers behind one address have 64 places.
    let scrapes = (0..100).map(|_| get_text(&target, "/metrics", OPEN_METRICS));
    let answers = join_all(scrapes).await;
    assert!(answers.iter().all(|(status, _)| *status == 200));
    let readings: BTreeSet<&str> = answers.iter().map(|(_, text)| text.as_str()).collect();
    assert!(readings.len() < 100, "no two scrapes shared a reading");

    for path in ["/healthz", "/readyz"] {
        assert_eq!(get_text(&target, path, "*/*").await.0, 200, "{path}");
    }
    target.stop();
}
