//! Configuration calls: latency and rate of Create, Get, Stats and Delete of a null volume, with 1 and 16 clients,
//! beside an idle and a saturated data path.
//!
//! Clients are closed loops with a connection each. A cycle measures one verb after the other: volumes are created,
//! read, and deleted again. The floor is measured while opi-spdk runs, so that the machine (especially its busy
//! reactor core) is the same for both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::{Address, Client, Subject, Verb};
use crate::floor;
use crate::initiator::{Background, Measured};
use crate::opi::Counters;
use crate::scenario::{Export, Volume};
use crate::settings::Settings;
use crate::stats::{Latency, Rounds};
use crate::target::{Side, Target, Turn};

/// Numbers of concurrent clients.
const CLIENTS: [usize; 2] = [1, 16];

/// Maximum number of volumes created per cycle.
const POPULATION: usize = 2000;

/// Volumes per client in the warm-up.
const WARM_UP: usize = 25;

/// Duration of measuring one verb, unless its volumes run out first.
const WINDOW: Duration = Duration::from_millis(800);

/// Load of the data path during the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    Idle,
    /// spdk_nvme_perf reads at queue depth 32.
    Saturated,
}

/// One verb in one cycle.
#[derive(Debug, Clone, Serialize)]
struct Window {
    samples: Vec<Duration>,
    /// From the first call to the last answer.
    took: Duration,
}

/// Results of one verb under one condition, over all rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub subject: Subject,
    pub verb: Verb,
    pub clients: usize,
    pub load: Load,
    /// All samples of all rounds.
    pub latency: Latency,
    /// Each round separately.
    pub rounds: Vec<Latency>,
    /// Median latency of each round, in microseconds.
    pub p50_us: Rounds,
    /// Answers per second, over all clients.
    pub calls_per_second: Rounds,
}

/// Results of this part.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Control {
    pub points: Vec<Point>,
    /// Results of the data path while saturated, one per run.
    pub data_path: Vec<(Side, Measured)>,
}

#[derive(Default)]
struct Collected {
    windows: Vec<(Key, Window)>,
    data_path: Vec<(Side, Measured)>,
}

#[derive(Clone, Copy, PartialEq)]
struct Key(Subject, Verb, usize, Load);

pub async fn run(settings: &Settings) -> Result<Control> {
    let mut collected = Collected::default();
    for round in 0..settings.line.rounds {
        for turn in settings.turns(round) {
            let side = turn.side;
            eprintln!(
                "control path: round {} of {}, {side}",
                round + 1,
                settings.line.rounds
            );
            measure(settings, turn, round, &mut collected)
                .await
                .with_context(|| format!("control path on {side}"))?;
        }
    }
    Ok(summarise(collected))
}

/// Measures all conditions on one side.
async fn measure(
    settings: &Settings,
    turn: Turn,
    round: u32,
    collected: &mut Collected,
) -> Result<()> {
    let side = turn.side;
    let mut target = Target::start(settings, turn, Counters::Unwanted).await?;
    let attach = target
        .export(settings, Volume::Malloc, Export::NvmeTcp)
        .await?;
    let floor = match side {
        Side::Opi => Some(floor::start(settings).await?),
        Side::SpdkTgt => None,
    };
    let subject = match side {
        Side::Opi => Subject::Opi,
        Side::SpdkTgt => Subject::SpdkTgt,
    };
    let mut subjects = vec![(subject, target.address())];
    if let Target::Opi(opi) = &target {
        subjects.push((Subject::OpiHttp, Address::Http(opi.http_port)));
    }
    subjects.extend(
        floor
            .iter()
            .map(|(_, port)| (Subject::Floor, Address::Grpc(*port))),
    );
    if round % 2 == 1 {
        subjects.reverse();
    }
    for load in [Load::Idle, Load::Saturated] {
        let background = match load {
            Load::Idle => None,
            Load::Saturated => Some(Background::start(settings, &attach).await?),
        };
        for clients in CLIENTS {
            for (subject, address) in &subjects {
                let context = || format!("{subject:?}, {clients} clients, {load:?} data path");
                for (verb, window) in cycle(address, clients).await.with_context(context)? {
                    collected
                        .windows
                        .push((Key(*subject, verb, clients, load), window));
                }
            }
        }
        if let Some(background) = background {
            collected.data_path.push((side, background.stop().await?));
        }
    }
    drop(floor);
    target.stop().await
}

/// Connects, warms up, and measures each verb.
async fn cycle(address: &Address, clients: usize) -> Result<Vec<(Verb, Window)>> {
    let mut workers = Vec::new();
    for number in 0..clients {
        workers.push(Worker {
            client: Client::connect(address).await?,
            prefix: format!("b{number}"),
            created: 0,
        });
    }
    for verb in Verb::ALL {
        workers = window(workers, verb, WARM_UP * clients).await?.0;
    }
    workers.iter_mut().for_each(|worker| worker.created = 0);
    let mut windows = Vec::new();
    for verb in Verb::ALL {
        let (back, window) = window(workers, verb, POPULATION).await?;
        workers = back;
        windows.push((verb, window));
    }
    Ok(windows)
}

/// A client and the volumes that it has created.
struct Worker {
    client: Client,
    prefix: String,
    created: usize,
}

/// Runs all workers concurrently through one verb. At most `population` volumes are created.
async fn window(
    workers: Vec<Worker>,
    verb: Verb,
    population: usize,
) -> Result<(Vec<Worker>, Window)> {
    let share = population / workers.len();
    let mut running = JoinSet::new();
    let begun = Instant::now();
    for worker in workers {
        running.spawn(worker.run(verb, share, begun + WINDOW));
    }
    let mut workers = Vec::new();
    let mut samples = Vec::new();
    let mut took = Duration::ZERO;
    while let Some(done) = running.join_next().await {
        let (worker, own, ended) = done??;
        workers.push(worker);
        samples.extend(own);
        took = took.max(ended - begun);
    }
    Ok((workers, Window { samples, took }))
}

impl Worker {
    /// Makes calls until the deadline; creates at most `share` volumes, and deletes all that were created.
    async fn run(
        mut self,
        verb: Verb,
        share: usize,
        until: Instant,
    ) -> Result<(Self, Vec<Duration>, Instant)> {
        let mut samples = Vec::with_capacity(4 * share);
        let mut now = Instant::now();
        for turn in 0.. {
            let over = match verb {
                Verb::Create => turn == share || now >= until,
                Verb::Get | Verb::Stats => now >= until,
                Verb::Delete => turn == self.created,
            };
            if over {
                break;
            }
            let number = match verb {
                Verb::Create | Verb::Delete => turn,
                Verb::Get | Verb::Stats => turn % self.created,
            };
            let id = format!("{}-{number}", self.prefix);
            let begun = Instant::now();
            self.client
                .call(verb, &id)
                .await
                .with_context(|| format!("{verb:?} {id}"))?;
            now = Instant::now();
            samples.push(now - begun);
            if verb == Verb::Create {
                self.created += 1;
            }
        }
        Ok((self, samples, now))
    }
}

fn summarise(collected: Collected) -> Control {
    let mut keys: Vec<Key> = Vec::new();
    for (key, _) in &collected.windows {
        if !keys.contains(key) {
            keys.push(*key);
        }
    }
    let points = keys.into_iter().filter_map(|key| {
        let windows = || {
            collected
                .windows
                .iter()
                .filter(|(k, _)| *k == key)
                .map(|(_, window)| window)
        };
        let rounds: Vec<_> = windows()
            .filter_map(|window| Latency::of(window.samples.clone()))
            .collect();
        let all = windows()
            .flat_map(|window| window.samples.iter().copied())
            .collect();
        let rates = windows().map(|window| window.samples.len() as f64 / window.took.as_secs_f64());
        let Key(subject, verb, clients, load) = key;
        Some(Point {
            subject,
            verb,
            clients,
            load,
            latency: Latency::of(all)?,
            p50_us: Rounds::of(rounds.iter().map(|latency| latency.p50_us).collect())?,
            rounds,
            calls_per_second: Rounds::of(rates.collect())?,
        })
    });
    Control {
        points: points.collect(),
        data_path: collected.data_path,
    }
}
