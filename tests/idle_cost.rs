//! What idle objects take of the I/O of others on the same reactor: the figures in docs/performance.md, Many objects.
//! `scripts/test.sh --release --test idle_cost -- --ignored --nocapture` prints them.

mod common;

use std::time::{Duration, Instant};

use common::nvme_tcp::{Host, Identity};
use common::{
    Client, Fixture, Options, Resource, Target, namespace, nqn_of, subsystem, tcp_controller,
    tcp_spec,
};
use serde_json::json;

/// How often idle objects are created, looked at and deleted.
const ROUNDS: usize = 5;

/// For how long I/O is counted.
const WINDOW: Duration = Duration::from_secs(2);

/// Returns the I/Os per second of an export under load. The load is there no longer than it is counted: what is created
/// meanwhile would take minutes, since the initiator polls on the core of the control threads.
async fn rate(export: &Fixture) -> f64 {
    let load = export.load(60).await;
    let volumes = export.resource("MallocVolume");
    let count = async || {
        let stats = volumes.stats(&export.volume).await;
        let of = |field: &str| stats[field].as_f64().expect("a count");
        (of("read_ops_count") + of("write_ops_count"), Instant::now())
    };
    // What was created or deleted has settled.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (before, begun) = count().await;
    tokio::time::sleep(WINDOW).await;
    let (after, ended) = count().await;
    drop(load);
    (after - before) / (ended - begun).as_secs_f64()
}

/// Prints the I/O of a host with idle objects beside it, relative to that without, before and after.
async fn compare<T>(
    target: &Target,
    what: &str,
    mut create: impl AsyncFnMut(&Client) -> T,
    mut delete: impl AsyncFnMut(&Client, T),
) {
    let export = Fixture::tcp(target, 16).await;
    let client = &export.client;
    let mut ratios = Vec::new();
    let mut before = rate(&export).await;
    for round in 0..ROUNDS {
        let idle = create(client).await;
        let beside = rate(&export).await;
        delete(client, idle).await;
        let after = rate(&export).await;
        let ratio = beside * 2.0 / (before + after);
        println!("{what}: round {round}: {before:.0}, {beside:.0}, {after:.0}: {ratio:.3}");
        ratios.push(ratio);
        before = after;
    }
    ratios.sort_by(f64::total_cmp);
    let (least, most) = (ratios[0], ratios[ROUNDS - 1]);
    let median = ratios[ROUNDS / 2];
    println!("{what}: {median:.3} ({least:.3} to {most:.3}) of the I/O without them");
}

/// Creates null volumes `prefix-0` and on; returns their names.
async fn nulls(client: &Client, prefix: &str, number: usize) -> Vec<String> {
    let volumes = Resource::new(client, "NullVolume");
    let object = json!({ "block_size": 512, "blocks_count": 2048 });
    let mut names = Vec::new();
    for n in 0..number {
        let id = format!("{prefix}-{n}");
        volumes.created("", &id, object.clone()).await;
        names.push(format!("volumes/{id}"));
    }
    names
}

async fn deleted(client: &Client, message: &'static str, names: &[String]) {
    let of = Resource::new(client, message);
    for name in names {
        of.deleted(name).await;
    }
}

/// Deletes a subsystem with all that it has.
async fn delete_subsystem(client: &Client, name: &str) {
    for message in ["NvmeController", "NvmeNamespace"] {
        let names = Resource::new(client, message).names(name).await;
        deleted(client, message, &names).await;
    }
    deleted(client, "NvmeSubsystem", &[name.to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: scripts/test.sh --release --test idle_cost -- --ignored --nocapture"]
async fn volumes_with_limits() {
    const VOLUMES: usize = 1000;
    let target = Target::start_with(Options::default().memory(1024).alone()).await;
    let create = async |client: &Client| {
        let over = subsystem(client, "idle", json!({ "max_namespaces": VOLUMES })).await;
        let bases = nulls(client, "base", VOLUMES).await;
        let limits = Resource::new(client, "QosVolume");
        let mut names = Vec::new();
        for (n, base) in bases.iter().enumerate() {
            let object = json!({
                "volume_name_ref": base,
                "limits": { "max": { "rw_iops_kiops": 10 } },
            });
            let id = format!("limited-{n}");
            limits.created("", &id, object).await;
            names.push(format!("volumes/{id}"));
            namespace(client, &over, &names[n], json!({})).await;
        }
        (over, names, bases)
    };
    let delete = async |client: &Client,
                        (over, names, bases): (String, Vec<String>, Vec<String>)| {
        delete_subsystem(client, &over).await;
        deleted(client, "QosVolume", &names).await;
        deleted(client, "NullVolume", &bases).await;
    };
    compare(
        &target,
        "1,000 exported volumes with limits",
        create,
        delete,
    )
    .await;
    target.stop();
}

/// Connected hosts, and what they use.
struct Hosts {
    hosts: Vec<(Host, Host)>,
    subsystems: Vec<String>,
    volumes: Vec<String>,
}

impl Hosts {
    async fn delete(self, client: &Client) {
        drop(self.hosts);
        for name in &self.subsystems {
            delete_subsystem(client, name).await;
        }
        deleted(client, "NullVolume", &self.volumes).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: scripts/test.sh --release --test idle_cost -- --ignored --nocapture"]
async fn volumes_subsystems_and_connected_hosts() {
    const SUBSYSTEMS: usize = 1000;
    const EACH: usize = 10;
    // Each queue of a host takes 786 KiB.
    let target = Target::start_with(Options::default().memory(3072).alone()).await;
    let create = async |client: &Client| {
        let volumes = nulls(client, "volume", SUBSYSTEMS * EACH).await;
        let (mut hosts, mut subsystems) = (Vec::new(), Vec::new());
        let mut shared = None;
        for n in 0..SUBSYSTEMS {
            let id = format!("idle-{n}");
            let over = subsystem(client, &id, json!({})).await;
            for volume in &volumes[n * EACH..][..EACH] {
                namespace(client, &over, volume, json!({})).await;
            }
            // One port for all of them.
            let port = match shared {
                Some(port) => {
                    let controllers = Resource::new(client, "NvmeController");
                    controllers.created(&over, "", tcp_spec(port)).await;
                    port
                }
                None => tcp_controller(client, &over).await.1,
            };
            shared = Some(port);
            let identity = Identity::new(port, &nqn_of(&id));
            hosts.extend(tokio::task::block_in_place(|| identity.hosts(1)));
            subsystems.push(over);
        }
        Hosts {
            hosts,
            subsystems,
            volumes,
        }
    };
    let delete = async |client: &Client, of: Hosts| of.delete(client).await;
    let what = "10,000 volumes, 1,000 subsystems, 1,000 connected hosts";
    compare(&target, what, create, delete).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: scripts/test.sh --release --test idle_cost -- --ignored --nocapture"]
async fn connected_hosts() {
    const HOSTS: u16 = 1000;
    let target = Target::start_with(Options::default().memory(3072).alone()).await;
    let create = async |client: &Client| {
        let volumes = nulls(client, "volume", 1).await;
        let over = subsystem(client, "idle", json!({})).await;
        namespace(client, &over, &volumes[0], json!({})).await;
        let (_, port) = tcp_controller(client, &over).await;
        let identity = Identity::new(port, &nqn_of("idle"));
        Hosts {
            hosts: tokio::task::block_in_place(|| identity.hosts(HOSTS)),
            subsystems: vec![over],
            volumes,
        }
    };
    let delete = async |client: &Client, of: Hosts| of.delete(client).await;
    compare(&target, "1,000 connected hosts", create, delete).await;
    target.stop();
}
