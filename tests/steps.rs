//! No verb of any kind holds a reactor for long, in the CPU time of the reactor's thread: what else runs on the machine, and
//! on the same core, does not count.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use common::kinds::{IMPLEMENTED, Kind, Lab, Place};
use common::nvme_tcp::{Digests, Identity};
use common::{
    Client, Fixture, Options, Resource, Scrape, Target, malloc, name_of, namespace, unique, with,
};
use serde_json::json;

/// No poll of an SPDK thread may hold its reactor for longer: a bound of the metric, in seconds.
const LIMIT: &str = "0.001";

/// A verb's shortest poll counts, of so many attempts: page faults and cold caches take CPU time too.
const ROUNDS: usize = 3;

/// The polls of the reactor that held it for longer than the limit, and for longer than 100 us.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Long {
    over_limit: u64,
    over_100us: u64,
}

impl Long {
    async fn of(target: &Target) -> Self {
        const NAME: &str = "opi_spdk_reactor_poll_cpu_seconds";
        let scrape = Scrape::of(target).await;
        let count = scrape.value(&format!("{NAME}_count"), &[("core", "0")]);
        let over = |bound| {
            let of = [("core", "0"), ("le", bound)];
            (count - scrape.value(&format!("{NAME}_bucket"), &of)) as u64
        };
        Self {
            over_limit: over(LIMIT),
            over_100us: over("0.0001"),
        }
    }
}

/// What was found of each verb: the best attempt counts.
struct Found<'a> {
    target: &'a Target,
    verbs: BTreeMap<String, Long>,
}

impl Found<'_> {
    /// Runs a verb, and takes note of the polls meanwhile.
    async fn verb<T>(&mut self, name: String, verb: impl Future<Output = T>) -> T {
        let before = Long::of(self.target).await;
        let done = verb.await;
        let after = Long::of(self.target).await;
        let long = Long {
            over_limit: after.over_limit - before.over_limit,
            over_100us: after.over_100us - before.over_100us,
        };
        let best = self.verbs.entry(name).or_insert(long);
        *best = long.min(*best);
        done
    }

    /// Runs all verbs of a kind.
    async fn kind(&mut self, lab: &Lab, kind: &'static Kind, round: usize) {
        let message = kind.message;
        let tag = format!("{}{round}", message.to_lowercase());
        let place = Place::new(lab.clone(), kind, &tag).await;
        let changes = place.changes().await;
        let sample = place.sample(0).await;
        let resource = place.resource.clone();
        let id = place.id(0);
        let create = resource.created(&place.parent, &id, sample.clone());
        let name = name_of(&self.verb(format!("{message} Create"), create).await);
        let got = self.verb(format!("{message} Get"), resource.get(&name));
        got.await.expect("the object exists");
        self.verb(format!("{message} List"), resource.list(&place.parent))
            .await;
        self.verb(format!("{message} Stats"), resource.stats(&name))
            .await;
        for (path, value) in changes {
            let object = with(sample.clone(), path, value);
            let mask = [path];
            let update = resource.updated(&name, object, Some(&mask));
            self.verb(format!("{message} Update {path}"), update).await;
        }
        self.verb(format!("{message} Delete"), resource.deleted(&name))
            .await;
        place.clean().await;
    }

    /// Runs the verbs that pause a subsystem, on the one that hosts use meanwhile.
    async fn subsystem_in_use(&mut self, client: &Client, export: &Fixture) {
        let volume = malloc(client, &unique("volume"), 8).await;
        let create = namespace(client, &export.subsystem, &volume, json!({}));
        let name = self.verb("namespace in use Create".into(), create).await;
        let namespaces = Resource::new(client, "NvmeNamespace");
        self.verb("namespace in use Delete".into(), namespaces.deleted(&name))
            .await;
        Resource::new(client, "MallocVolume").deleted(&volume).await;
    }
}

/// Reads and writes of a host, until dropped.
struct Load {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Load {
    fn start(identity: Identity) -> Self {
        let ends = Arc::<AtomicBool>::default();
        let until = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let admin = identity.admin(Digests::OFF);
            let mut io = identity.io(&admin, 1);
            let mut number = 0;
            while !until.load(Ordering::Relaxed) {
                let answer = io.write(1, number % 1024, &[7; 2048]).expect("a write");
                assert_eq!(answer.status(), 0);
                io.read(1, number % 1024, 8).expect("a read");
                number += 1;
            }
            number
        });
        Self {
            ends,
            thread: Some(thread),
        }
    }

    /// Ends the load, which must have done some.
    fn end(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        let number = thread.join().expect("all I/O succeeds");
        assert!(number > 1000, "{number} reads and writes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "by hand: names each verb with a poll over 100 us, and has failed beside other load"]
async fn no_verb_of_any_kind_holds_a_reactor_with_io_for_long() {
    let target = Target::start_with(Options::hugepages().args(["--measure-polls"])).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let lab = Lab {
        target: target.grpc,
        peer: peer.grpc,
        dir: target.scratch().to_owned(),
    };
    let export = Fixture::tcp(&target, 16).await;
    let load = Load::start(Identity::new(export.port, &export.nqn));
    let mut found = Found {
        target: &target,
        verbs: BTreeMap::new(),
    };
    for round in 0..ROUNDS {
        for kind in IMPLEMENTED {
            found.kind(&lab, kind, round).await;
        }
        found.subsystem_in_use(&export.client, &export).await;
    }
    load.end();
    let lines = found.verbs.iter().filter(|(_, long)| long.over_100us > 0);
    let lines: Vec<_> = lines
        .map(|(verb, long)| format!("{verb}: {long:?}"))
        .collect();
    println!("{}", lines.join("\n"));
    println!("long steps: {:#?}", Scrape::of(&target).await.long_steps());
    let is_long = found.verbs.values().any(|long| long.over_limit > 0);
    assert!(!is_long, "{}\n{}", lines.join("\n"), target.log());
    peer.stop();
    target.stop();
}
