//! Random, nearly valid HTTP requests to the running program, generated from the descriptors.
//! Invariants: no server errors, no hangs, and the API lists exactly the objects that exist in SPDK.

mod bounds;
#[path = "../common/mod.rs"]
mod common;
mod request;
mod spdk;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Client, Http, Options, Random, Resource, Target, free_port};
use opi_spdk::api;
use prost_reflect::MethodDescriptor;
use request::Fuzz;
use spdk::{Spdk, all_names, check_against_spdk};

/// Number of concurrent clients, requests per client and round, and time limit of a round.
const CLIENTS: u64 = 4;
const REQUESTS: usize = 700;
const TIME: Duration = Duration::from_secs(40);

/// Time limit for the creation of most kinds.
const LONGEST: Duration = Duration::from_secs(60);

/// The acceptable response statuses.
const STATUSES: [u16; 9] = [200, 400, 404, 405, 409, 429, 501, 503, 504];

/// All kinds that can be created, dependents first.
const KINDS: [&str; 19] = [
    "VirtioScsiLun",
    "VirtioScsiController",
    "VirtioScsiTarget",
    "VirtioBlk",
    "NvmeNamespace",
    "QosVolume",
    "EncryptedVolume",
    "DelayVolume",
    "NvmePath",
    "NvmeCredential",
    "NvmeRemoteController",
    "NvmeController",
    "NvmeHost",
    "NvmeNamespaceMask",
    "DiscoveryReferral",
    "NvmeSubsystem",
    "AioVolume",
    "MallocVolume",
    "NullVolume",
];

/// Sends random requests; counts the responses by RPC and status.
async fn ask(http: Http, mut fuzz: Fuzz, end: Instant) -> BTreeMap<(String, u16), usize> {
    let all: Vec<MethodDescriptor> = api::pool()
        .services()
        .flat_map(|s| s.methods().collect::<Vec<_>>())
        // Streaming methods have no HTTP route.
        .filter(|rpc| !rpc.is_server_streaming())
        .collect();
    let creates: Vec<_> = all
        .iter()
        .filter(|rpc| rpc.name().starts_with("Create"))
        .cloned()
        .collect();
    let mut answers = BTreeMap::new();
    for _ in 0..REQUESTS {
        if Instant::now() > end {
            break;
        }
        let rpc = if fuzz.random.one_in(2) {
            fuzz.pick(&creates)
        } else {
            fuzz.pick(&all)
        };
        let (method, path, body) = fuzz.request(&rpc);
        let shown = String::from_utf8_lossy(&body).into_owned();
        let answer = http.send(&method, &path, &[], body).await;
        assert!(
            STATUSES.contains(&answer.status),
            "{method} {path} {shown}: {} {}",
            answer.status,
            answer.body
        );
        assert!(
            answer.body.is_object(),
            "{method} {path} {shown}: {}",
            answer.body
        );
        *answers
            .entry((rpc.name().to_owned(), answer.status))
            .or_default() += 1;
    }
    answers
}

/// Deletes all objects in several rounds: objects in use become free in a later round.
async fn delete_all(client: &Client) {
    let mut left = Vec::new();
    for _ in 0..4 {
        left.clear();
        for kind in KINDS {
            for name in all_names(client, kind).await {
                if let Err(status) = Resource::new(client, kind).delete(&name).await {
                    left.push(format!("{kind} {name}: {status}"));
                }
            }
        }
        if left.is_empty() {
            return;
        }
    }
    panic!("objects cannot be deleted: {left:#?}");
}

fn files(dir: &Path) -> Vec<String> {
    let file = |name: &str, length: u64| {
        let path = dir.join(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(length))
            .expect("the file can be created");
        path.display().to_string()
    };
    vec![
        file("first", 1 << 20),
        file("second", 1 << 20),
        file("empty", 0),
        dir.display().to_string(),
        "relative".into(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn random_requests_cause_no_server_errors_and_lists_match_spdk() {
    let dir = Arc::new(
        tempfile::Builder::new()
            .prefix("opi-")
            .tempdir()
            .expect("a directory"),
    );
    let spdk = Spdk {
        socket: dir.path().join("rpc.sock"),
    };
    let options = Options::hugepages().in_dir(Arc::clone(&dir));
    let options = options.args([
        "--spdk-rpc-socket".to_owned(),
        spdk.socket.display().to_string(),
    ]);
    let target = Target::start_with(options).await;
    let (files, ports) = (files(dir.path()), [free_port(), free_port()].to_vec());
    let begun = Instant::now();
    let mut answers: BTreeMap<(String, u16), usize> = BTreeMap::new();
    // Repeat until most kinds have been created, on slow machines too.
    for round in 0.. {
        let end = Instant::now() + TIME;
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|client| {
                let random = Random((client + round * CLIENTS).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let fuzz = Fuzz {
                    random,
                    files: files.clone(),
                    ports: ports.clone(),
                };
                tokio::spawn(ask(Http(target.http), fuzz, end))
            })
            .collect();
        for client in clients {
            for (answer, count) in client.await.expect("the client did not panic") {
                *answers.entry(answer).or_default() += count;
            }
        }
        let made = KINDS
            .iter()
            .filter(|kind| answers.contains_key(&(format!("Create{kind}"), 200)));
        let made: Vec<_> = made.collect();
        if made.len() >= 10 {
            break;
        }
        assert!(begun.elapsed() < LONGEST, "only {made:?} were created");
    }
    eprintln!("{answers:?}");

    let client = target.client().await;
    assert!(client.is_serving().await);
    for kind in KINDS {
        all_names(&client, kind).await;
    }
    check_against_spdk(&client, &spdk).await;
    delete_all(&client).await;
    assert!(spdk.list("bdev_get_bdevs").await.is_empty());
    check_against_spdk(&client, &spdk).await;
    let log = target.log();
    assert!(!log.contains("panicked"), "{log}");
    target.stop();
}
