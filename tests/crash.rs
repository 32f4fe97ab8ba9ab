//! A storm of calls, kill -9 at a random moment, a restart: everything that was answered is there, what was
//! not is there wholly or not at all, SPDK has what the records say, and hosts read what they wrote.
//!
//! `CRASH_ROUNDS` says how often; `scripts/test.sh --crash` sets it to 200.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{
    Client, Initiator, JsonRpc, Options, Resource, Target, eventually, name_of, namespace, nqn_of,
    pattern, subsystem, tcp_controller,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};

const CLIENTS: usize = 8;

/// Objects of each client.
const OBJECTS: u64 = 6;

/// Namespaces of each client, each on a volume of its own.
const NAMESPACES_EACH: u64 = 2;

/// The subsystem that they are all in, and what their names begin with.
const SHARED: &str = "nvmeSubsystems/shared";
const NAMESPACES: &str = "nvmeSubsystems/shared/nvmeNamespaces/";

/// What hosts write in each round.
const DISK_KIB: u32 = 1024;

/// What a client knows of its objects: of each volume its blocks, of each subsystem and namespace 0.
type Known = BTreeMap<String, i64>;

/// SplitMix64: the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// A change of one object: what it is afterwards, `None` for gone.
#[derive(Debug, Clone)]
struct Step {
    id: String,
    to: Option<i64>,
}

/// What a client saw until the target was gone.
struct Seen {
    known: Known,
    /// The change that was not answered.
    open: Option<Step>,
    answered: usize,
}

fn volume(blocks: i64) -> Value {
    json!({ "block_size": 512, "blocks_count": blocks })
}

async fn change(client: &Client, known: &Known, step: &Step) -> Result<(), Status> {
    let (message, collection, parent) = match step.id.as_bytes().first() {
        Some(b'v') => ("NullVolume", "volumes/", ""),
        Some(b's') => ("NvmeSubsystem", "nvmeSubsystems/", ""),
        _ => ("NvmeNamespace", NAMESPACES, SHARED),
    };
    let resource = Resource::new(client, message);
    let name = format!("{collection}{}", step.id);
    match (known.contains_key(&step.id), step.to) {
        (_, None) => resource.delete(&name).await,
        (false, Some(blocks)) => {
            let object = match message {
                "NullVolume" => volume(blocks),
                "NvmeSubsystem" => json!({ "spec": { "nqn": nqn_of(&step.id) } }),
                _ => json!({ "spec": { "volume_name_ref": format!("volumes/base-{}", step.id) } }),
            };
            resource.create(parent, &step.id, object).await.map(drop)
        }
        (true, Some(blocks)) => {
            let mask = Some(&["blocks_count"][..]);
            resource.update(&name, volume(blocks), mask).await.map(drop)
        }
    }
}

/// A disk that hosts reach over NVMe/TCP, on a file; the namespaces of all clients are beside it.
struct Disk {
    host: Initiator,
}

impl Disk {
    async fn new(client: &Client, dir: &Path) -> Self {
        let path = dir.join("disk");
        let file = File::create(&path).expect("a file");
        file.set_len(16 << 20).expect("there is room");
        let object = json!({ "filename": path, "block_size": 512, "blocks_count": 32768 });
        let volumes = Resource::new(client, "AioVolume");
        let on_file = name_of(&volumes.created("", "data", object).await);
        let over = subsystem(client, "shared", json!({})).await;
        assert_eq!(over, SHARED);
        namespace(client, &over, &on_file, json!({ "host_nsid": 1 })).await;
        for number in 0..CLIENTS {
            for at in 0..NAMESPACES_EACH {
                let id = format!("base-n{number}-{at}");
                let nulls = Resource::new(client, "NullVolume");
                nulls.created("", &id, volume(64)).await;
            }
        }
        let (_, port) = tcp_controller(client, &over).await;
        let host = Initiator::tcp(port, &nqn_of("shared"));
        Self { host }
    }

    /// A host writes bytes of this round, and is answered.
    async fn write(&self, dir: &Path, round: usize) {
        let file = dir.join("in");
        std::fs::write(&file, bytes_of(round)).expect("there is room");
        let copied = self.host.copy_in(dir, &file, 1).await;
        copied.expect("it can be written");
    }

    /// A host that connects anew reads what was written before the end of the target.
    async fn check(&self, dir: &Path, round: usize) {
        let file = dir.join("out");
        let copied = self.host.copy_out(dir, 1, DISK_KIB, &file).await;
        copied.expect("it can be read");
        let is = std::fs::read(&file).expect("it was copied");
        assert!(is == bytes_of(round), "round {round}: other bytes");
    }
}

fn bytes_of(round: usize) -> Vec<u8> {
    let mut bytes = pattern(DISK_KIB);
    let mark = u8::try_from(round % 251).expect("small");
    bytes.iter_mut().for_each(|byte| *byte ^= mark);
    bytes
}

/// Changes objects of its own, one call after the other, until the target is gone.
async fn storm(client: Client, number: usize, mut known: Known, seed: u64) -> Seen {
    let mut dice = Dice(seed);
    let mut answered = 0;
    loop {
        let (letter, objects) = match dice.below(4) {
            0 => ('s', OBJECTS),
            1 => ('n', NAMESPACES_EACH),
            _ => ('v', OBJECTS),
        };
        let id = format!("{letter}{number}-{}", dice.below(objects));
        let to = match (known.contains_key(&id), letter) {
            (false, 's' | 'n') => Some(0),
            (false, _) => Some(64 + i64::try_from(dice.below(64)).expect("small")),
            (true, 'v') if dice.below(2) == 0 => {
                Some(128 + i64::try_from(dice.below(64)).expect("small"))
            }
            (true, _) => None,
        };
        let step = Step { id, to };
        match change(&client, &known, &step).await {
            Ok(()) => {
                answered += 1;
                match step.to {
                    Some(blocks) => known.insert(step.id, blocks),
                    None => known.remove(&step.id),
                };
            }
            // The connection has ended, with the call under way or before it.
            Err(status)
                if [
                    Code::Unavailable,
                    Code::Unknown,
                    Code::Cancelled,
                    Code::Internal,
                ]
                .contains(&status.code()) =>
            {
                return Seen {
                    known,
                    open: Some(step),
                    answered,
                };
            }
            Err(status) => panic!("{step:?}: {status}"),
        }
    }
}

/// What the target says that it has: of each object what the model has of it, and the UUIDs of all volumes.
async fn listed(client: &Client) -> (Known, Vec<String>) {
    let mut found = Known::new();
    let mut uuids = Vec::new();
    for (message, collection, parent) in [
        ("NullVolume", "volumes/", ""),
        ("AioVolume", "volumes/", ""),
        ("NvmeSubsystem", "nvmeSubsystems/", ""),
        ("NvmeNamespace", NAMESPACES, SHARED),
    ] {
        let (items, rest) = Resource::new(client, message).page(parent, 1000, "").await;
        assert_eq!(rest, "", "all on one page");
        for item in items {
            let name = item["name"].as_str().expect("a name");
            let id = name.strip_prefix(collection).expect("its collection");
            let blocks = match &item["blocks_count"] {
                Value::String(text) => text.parse().expect("a number"),
                other => other.as_i64().unwrap_or(0),
            };
            let is_of_a_client = id[1..].starts_with(|first: char| first.is_ascii_digit());
            if is_of_a_client {
                found.insert(id.to_owned(), blocks);
            }
            if let Some(uuid) = item["uuid"].as_str() {
                uuids.push(uuid.to_owned());
            }
        }
    }
    uuids.sort();
    (found, uuids)
}

fn check(number: usize, seen: &Seen, found: &Known, round: usize) {
    let own = |id: &&String| id[1..].starts_with(&format!("{number}-"));
    let ids = found.keys().filter(own).chain(seen.known.keys());
    for id in ids {
        let is = found.get(id).copied();
        let mut possible = vec![seen.known.get(id).copied()];
        possible.extend(
            seen.open
                .iter()
                .filter(|step| step.id == *id)
                .map(|step| step.to),
        );
        assert!(
            possible.contains(&is),
            "round {round}: {id} is {is:?}, and {possible:?} is possible (not answered: {:?})",
            seen.open
        );
    }
}

/// SPDK's own lists agree with what is listed.
async fn check_spdk(socket: &Path, found: &Known, uuids: &[String]) {
    let mut rpc = JsonRpc::connect(socket).await.expect("SPDK listens");
    let bdevs = rpc
        .call("bdev_get_bdevs", Value::Null)
        .await
        .expect("it answers");
    let texts = |list: &Value, field: &str| -> Vec<String> {
        let list = list.as_array().expect("a list").iter();
        let mut texts: Vec<_> = list
            .map(|item| item[field].as_str().expect("a text").to_owned())
            .collect();
        texts.sort();
        texts
    };
    assert_eq!(texts(&bdevs, "uuid"), uuids);
    let subsystems = rpc.call("nvmf_get_subsystems", Value::Null).await;
    let subsystems = subsystems.expect("it answers");
    let mut nqns = texts(&subsystems, "nqn");
    nqns.retain(|nqn| !nqn.ends_with("discovery"));
    let of = |letter: char| found.keys().filter(move |id| id.starts_with(letter));
    let mut wanted: Vec<_> = of('s').map(|id| nqn_of(id)).collect();
    wanted.push(nqn_of("shared"));
    wanted.sort();
    assert_eq!(nqns, wanted);
    let mut all = subsystems.as_array().expect("a list").iter();
    let shared = all.find(|one| one["nqn"] == nqn_of("shared").as_str());
    let namespaces = &shared.expect("it is listed")["namespaces"];
    let mut wanted: Vec<_> = of('n').map(|id| format!("base-{id}")).collect();
    wanted.push("data".to_owned());
    wanted.sort();
    assert_eq!(texts(namespaces, "bdev_name"), wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there_after_kill_9_and_nothing_is_half_there() {
    let rounds = std::env::var("CRASH_ROUNDS").ok();
    let rounds: usize = rounds.map_or(3, |text| text.parse().expect("a number"));
    let dir = tempfile::Builder::new().prefix("opi-").tempdir();
    let dir: Arc<TempDir> = Arc::new(dir.expect("a directory"));
    let socket = dir.path().join("rpc.sock");
    let args = ["--spdk-rpc-socket", socket.to_str().expect("UTF-8")];
    let options = Options::default().in_dir(Arc::clone(&dir)).args(args);
    let mut target = Target::start_with(options.clone()).await;
    let disk = Disk::new(&target.client().await, dir.path()).await;
    let mut dice = Dice(12);
    let mut known = vec![Known::new(); CLIENTS];
    let mut answered = 0;
    for round in 0..rounds {
        disk.write(dir.path(), round).await;
        let mut clients = Vec::new();
        for (number, known) in known.iter().enumerate() {
            let client = target.client().await;
            clients.push(tokio::spawn(storm(
                client,
                number,
                known.clone(),
                dice.below(u64::MAX),
            )));
        }
        // The moment is what is random here; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(20 + dice.below(400))).await;
        target.kill();
        let mut seen = Vec::new();
        for client in clients {
            seen.push(
                client
                    .await
                    .expect("every answer was one of a change or of its end"),
            );
        }
        target = Target::start_with(options.clone().after(&target)).await;
        let client = target.client().await;
        let (found, uuids) = listed(&client).await;
        for (number, seen) in seen.iter().enumerate() {
            check(number, seen, &found, round);
            answered += seen.answered;
        }
        check_spdk(&socket, &found, &uuids).await;
        disk.check(dir.path(), round).await;
        for (number, known) in known.iter_mut().enumerate() {
            let own = |id: &String| id[1..].starts_with(&format!("{number}-"));
            let all = found.iter().filter(|(id, _)| own(id));
            *known = all.map(|(id, blocks)| (id.clone(), *blocks)).collect();
        }
    }
    assert!(
        answered > rounds,
        "{answered} calls were answered in {rounds} rounds"
    );
    println!("{answered} calls were answered in {rounds} rounds");
    target.stop();
}

/// Bytes written to the volume that hosts write to.
async fn written(client: &Client) -> i64 {
    let stats = Resource::new(client, "AioVolume")
        .stats("volumes/data")
        .await;
    stats["write_bytes_count"].as_i64().expect("a counter")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stays_goes_on_over_kills_and_reads_what_it_wrote() {
    let dir = tempfile::Builder::new().prefix("opi-").tempdir();
    let dir: Arc<TempDir> = Arc::new(dir.expect("a directory"));
    let options = Options::default().in_dir(Arc::clone(&dir));
    let mut target = Target::start_with(options.clone()).await;
    let disk = Disk::new(&target.client().await, dir.path()).await;
    // As Linux does: what was under way is sent again once the controller is back.
    let patient = json!({
        "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1, "bdev_retry_count": -1
    });
    let driver = disk.host.driver().with_nvme_options(patient);
    // It ends when it is told to.
    let load = driver.load(dir.path(), 600).await;
    for round in 0..4 {
        if round > 0 {
            target.kill();
            target = Target::start_with(options.clone().after(&target)).await;
        }
        let client = target.client().await;
        eventually("the host writes", Duration::from_secs(60), async || {
            (written(&client).await > (4 << 20)).then_some(())
        })
        .await;
    }
    let said = load.stop().await;
    said.expect("all of its I/O has come to its end, and each read found what was written");
    target.stop();
}
