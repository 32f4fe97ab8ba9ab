//! Crash consistency: clients change objects, the target is killed (SIGKILL) at a random moment and restarted.
//! Invariants: acknowledged changes are durable, an unacknowledged change is atomic, SPDK agrees with the records, and
//! hosts read what they wrote, both a host whose I/O spans the restarts and hosts that connect for one round.
//!
//! `CRASH_ROUNDS` sets the number of rounds; `scripts/test.sh --crash` sets it to 200.

#[path = "../common/mod.rs"]
mod common;
mod kinds;
mod lists;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Client, Initiator, Options, Resource, Running, Target, eventually, name_of, namespace, nqn_of,
    pattern, subsystem, tcp_controller,
};
use kinds::{GUARDED, KINDS, Kind, Place};
use lists::Listed;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};

const CLIENTS: usize = 8;

/// Rounds that one host stays for: its messages about lost connections are buffered in a pipe until it ends.
const LOAD_ROUNDS: usize = 5;

/// KiB that hosts write in each round.
const DISK_KIB: u32 = 1024;

/// A client's model of its objects: the tracked value by ID.
type Known = BTreeMap<String, i64>;

/// SplitMix64 generator: reproducible for the same seed.
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

/// A change of one object to this value, or its deletion (`None`).
#[derive(Debug, Clone)]
struct Step {
    id: String,
    to: Option<i64>,
}

/// What a client observed until the target was killed.
struct Seen {
    known: Known,
    /// The unacknowledged change in flight.
    open: Option<Step>,
    answered: usize,
    /// The error that ended the client, and when.
    end: (Instant, Status),
}

/// Converts a number of an answer, which may be encoded as text; 0 if absent.
fn number(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.parse().expect("a number"),
        other => other.as_i64().unwrap_or(0),
    }
}

async fn change(client: &Client, place: &Place, known: &Known, step: &Step) -> Result<(), Status> {
    let kind = Kind::of(&step.id);
    let resource = Resource::new(client, kind.message);
    let name = format!("{}{}", kind.collection, step.id);
    let Some(value) = step.to else {
        return resource.delete(&name).await;
    };
    let object = place.object(&step.id, value);
    let changed = match known.contains_key(&step.id) {
        true => resource.update(&name, object, Some(&[kind.path])).await,
        false => resource.create(kind.parent, &step.id, object).await,
    };
    changed.map(drop)
}

/// A file-backed disk exported over NVMe/TCP.
struct Disk {
    volume: &'static str,
    port: u16,
    host: Initiator,
}

impl Disk {
    /// Creates `volume` and exports it in a new subsystem `over`.
    async fn new(client: &Client, dir: &Path, volume: &'static str, over: &str) -> Self {
        let path = dir.join(volume);
        let file = File::create(&path).expect("a file");
        file.set_len(16 << 20).expect("there is room");
        let object = json!({ "filename": path, "block_size": 512, "blocks_count": 32768 });
        let volumes = Resource::new(client, "AioVolume");
        let on_file = name_of(&volumes.created("", volume, object).await);
        let parent = subsystem(client, over, json!({})).await;
        namespace(client, &parent, &on_file, json!({ "host_nsid": 1 })).await;
        let (_, port) = tcp_controller(client, &parent).await;
        let host = Initiator::tcp(port, &nqn_of(over));
        Self { volume, port, host }
    }

    /// Starts a host that writes, reads and verifies until it is stopped. As Linux does, it retries I/O in flight once
    /// its controller has reconnected.
    async fn load(&self, dir: &Path) -> Running {
        let patient = json!({
            "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1, "bdev_retry_count": -1
        });
        let driver = self.host.driver().with_nvme_options(patient);
        driver.load(dir, 7200).await
    }

    /// Waits until hosts have written to the disk since the start of the target.
    async fn is_written_to(&self, client: &Client) {
        let volumes = Resource::new(client, "AioVolume");
        let name = format!("volumes/{}", self.volume);
        let bound = Duration::from_secs(60);
        eventually("the host writes", bound, async || {
            let stats = volumes.stats(&name).await;
            (number(&stats["write_bytes_count"]) > (4 << 20)).then_some(())
        })
        .await;
    }

    /// Writes this round's data as a host, and awaits its completion.
    async fn write(&self, dir: &Path, round: usize) {
        let file = dir.join("in");
        std::fs::write(&file, bytes_of(round)).expect("there is room");
        let copied = self.host.copy_in(dir, &file, 1).await;
        copied.expect("it can be written");
    }

    /// Connects a new host, and verifies the data acknowledged before the kill.
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

/// Creates the objects that all others depend on: base volumes, and the subsystem that lists hosts.
async fn prepare(client: &Client) {
    assert_eq!(subsystem(client, "guarded", json!({})).await, GUARDED);
    let nulls = Resource::new(client, "NullVolume");
    for kind in KINDS.iter().filter(|kind| kind.over_volume) {
        for number in 0..CLIENTS {
            for at in 0..kind.each {
                let id = format!("base-{}{number}-{at}", kind.letter);
                let object = json!({ "block_size": 512, "blocks_count": 64 });
                nulls.created("", &id, object).await;
            }
        }
    }
}

/// Changes the client's own objects one after the other until the target is killed.
async fn storm(
    client: Client,
    place: Arc<Place>,
    number: usize,
    mut known: Known,
    seed: u64,
) -> Seen {
    let mut dice = Dice(seed);
    let mut answered = 0;
    loop {
        let kind = &KINDS[usize::try_from(dice.below(KINDS.len() as u64)).expect("small")];
        let id = format!("{}{number}-{}", kind.letter, dice.below(kind.each));
        let is_there = known.contains_key(&id);
        let (creates, updates) = kind.values;
        let to = match is_there {
            false => Some(kind.value(false, dice.below(creates))),
            true if updates > 0 && dice.below(2) == 0 => {
                Some(kind.value(true, dice.below(updates)))
            }
            true => None,
        };
        let step = Step { id, to };
        match change(&client, &place, &known, &step).await {
            Ok(()) => {
                answered += 1;
                match step.to {
                    Some(value) => known.insert(step.id, value),
                    None => known.remove(&step.id),
                };
            }
            // The connection was lost, during the call or before it.
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
                    end: (Instant::now(), status),
                };
            }
            Err(status) => panic!("{step:?}: {status}"),
        }
    }
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

/// Stops the host that stays.
async fn ended(load: Option<Running>) {
    if let Some(load) = load {
        let said = load.stop().await;
        said.expect("all of its I/O has come to its end, and each read found what was written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there_after_kill_9_and_nothing_is_half_there() {
    let rounds = std::env::var("CRASH_ROUNDS").ok();
    let rounds: usize = rounds.map_or(3, |text| text.parse().expect("a number"));
    let dir = tempfile::Builder::new().prefix("opi-").tempdir();
    let dir: Arc<TempDir> = Arc::new(dir.expect("a directory"));
    let socket = dir.path().join("rpc.sock");
    let args = ["--spdk-rpc-socket", socket.to_str().expect("UTF-8")];
    // The devices of virtual machines need hugepages.
    let options = Options::hugepages().in_dir(Arc::clone(&dir)).args(args);
    let mut target = Target::start_with(options.clone()).await;
    let client = target.client().await;
    let place = Arc::new(Place::new(dir.path().to_owned()));
    let disk = Disk::new(&client, dir.path(), "data", "shared").await;
    let steady = Disk::new(&client, dir.path(), "steady-data", "steady").await;
    prepare(&client).await;
    let steady_dir = dir.path().join("steady");
    std::fs::create_dir(&steady_dir).expect("a directory");
    let mut load = None;
    let mut dice = Dice(12);
    let mut known = vec![Known::new(); CLIENTS];
    let mut answered = 0;
    for round in 0..rounds {
        if round % LOAD_ROUNDS == 0 {
            ended(load.take()).await;
            load = Some(steady.load(&steady_dir).await);
        }
        disk.write(dir.path(), round).await;
        steady.is_written_to(&target.client().await).await;
        let mut clients = Vec::new();
        for (number, known) in known.iter().enumerate() {
            let client = target.client().await;
            clients.push(tokio::spawn(storm(
                client,
                Arc::clone(&place),
                number,
                known.clone(),
                dice.below(u64::MAX),
            )));
        }
        // Not a wait for a condition: the moment of the kill is meant to be random.
        tokio::time::sleep(Duration::from_millis(20 + dice.below(400))).await;
        let killed = Instant::now();
        target.kill();
        let mut seen = Vec::new();
        for client in clients {
            let client = client.await;
            let client = client.expect("every answer was one of a change or of its end");
            let (end, status) = &client.end;
            assert!(*end >= killed, "{:?} failed: {status}", client.open);
            seen.push(client);
        }
        target = Target::start_with(options.clone().after(&target)).await;
        let client = target.client().await;
        let listed = Listed::of(&client).await;
        let found = &listed.found;
        for (number, seen) in seen.iter().enumerate() {
            check(number, seen, found, round);
            answered += seen.answered;
        }
        listed.check_spdk(&socket, &place, disk.port).await;
        disk.check(dir.path(), round).await;
        for (number, known) in known.iter_mut().enumerate() {
            let own = |id: &String| id[1..].starts_with(&format!("{number}-"));
            let all = found.iter().filter(|(id, _)| own(id));
            *known = all.map(|(id, value)| (id.clone(), *value)).collect();
        }
    }
    assert!(
        answered > rounds,
        "{answered} calls were answered in {rounds} rounds"
    );
    println!("{answered} calls were answered in {rounds} rounds");
    ended(load).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stays_goes_on_over_kills_and_reads_what_it_wrote() {
    let dir = tempfile::Builder::new().prefix("opi-").tempdir();
    let dir: Arc<TempDir> = Arc::new(dir.expect("a directory"));
    let options = Options::default().in_dir(Arc::clone(&dir));
    let mut target = Target::start_with(options.clone()).await;
    let disk = Disk::new(&target.client().await, dir.path(), "data", "shared").await;
    let load = disk.load(dir.path()).await;
    for round in 0..4 {
        if round > 0 {
            target.kill();
            target = Target::start_with(options.clone().after(&target)).await;
        }
        disk.is_written_to(&target.client().await).await;
    }
    ended(Some(load)).await;
    target.stop();
}
