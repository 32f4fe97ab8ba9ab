//! Reactors that sleep while they have no work, beside reactors that poll: what it saves, and what it costs.
//!
//! One target a mode and round, with 100 volumes exported and 10 hosts connected: processor time of the reactor without
//! I/O; reads that come one by one after a pause; I/O without a pause; calls. Then one target each with a vfio-user
//! controller and a virtio-blk device: the same figures of a guest, whose doorbells and rings only polling sees.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::attach::Attach;
use crate::client::{Address, Client, Verb};
use crate::host::Identity;
use crate::initiator::Initiator;
use crate::opi::{Counters, Opi, Start};
use crate::report::line;
use crate::scenario::{Export, Load, NQN, Volume, Workload};
use crate::settings::Settings;
use crate::stats::{Latency, Rounds};
use crate::verdict::Verdict;
use crate::vfio_user::{Command, DATA, Guest, io};
use crate::vhost_user::{Disk, Kind};

/// Volumes that are exported, and hosts that are connected without I/O.
const VOLUMES: u32 = 100;
const HOSTS: u16 = 10;

/// Duration of the measurement without I/O.
const WINDOW: Duration = Duration::from_secs(10);

/// Reads after a pause, and the pause: longer than it takes until a reactor sleeps.
const READS: u32 = 300;
const PAUSE: Duration = Duration::from_millis(20);

/// Calls in sequence.
const CALLS: u32 = 2000;

/// What a reactor without work does.
const MODES: [&str; 2] = ["busy", "nap"];

/// The rounds of one mode.
#[derive(Debug, Clone, Serialize)]
pub struct Naps {
    pub mode: &'static str,
    pub figures: Vec<Figure<Rounds>>,
}

/// A figure, of one round or of all.
#[derive(Debug, Clone, Serialize)]
pub struct Figure<T> {
    pub name: &'static str,
    #[serde(skip)]
    goal: Option<Goal>,
    pub value: T,
}

/// What a reactor that sleeps may cost, medians of the rounds.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// The value itself.
    AtMost(f64),
    /// Added to that of a reactor that polls, in microseconds.
    MoreUs(f64),
    /// The ratio to a reactor that polls.
    RatioAtLeast(f64),
    RatioAtMost(f64),
}

const NO_IO: Goal = Goal::AtMost(3.0);
const IOPS: Goal = Goal::RatioAtLeast(0.99);
const CALLS_RATIO: Goal = Goal::RatioAtMost(1.2);

/// The first I/O after a pause, where the reactor is woken, and where only polling can tell.
const WOKEN: Goal = Goal::MoreUs(100.0);
const POLLED: Goal = Goal::MoreUs(1000.0);

impl Goal {
    fn verdict(self, name: &str, busy: &Rounds, nap: &Rounds) -> Verdict {
        let ratio = Rounds::ratio(nap, busy).map_or(f64::NAN, |ratio| ratio.median);
        let more = nap.median - busy.median;
        let (goal, reached, met) = match self {
            Self::AtMost(most) => (format!("at most {most}"), nap.median, nap.median <= most),
            Self::MoreUs(most) => (format!("at most {most} µs more"), more, more <= most),
            Self::RatioAtLeast(least) => (format!("at least {least} times"), ratio, ratio >= least),
            Self::RatioAtMost(most) => (format!("at most {most} times"), ratio, ratio <= most),
        };
        Verdict {
            target: format!("--idle nap beside busy: {name}: {goal}"),
            reached: format!("{reached:.3}"),
            met,
        }
    }
}

/// The goals of the figures that have one.
pub fn verdicts(naps: &[Naps]) -> Vec<Verdict> {
    let [busy, nap] = naps else {
        return Vec::new();
    };
    let both = busy.figures.iter().zip(&nap.figures);
    both.filter_map(|(busy, nap)| Some(nap.goal?.verdict(nap.name, &busy.value, &nap.value)))
        .collect()
}

/// Formats a table: each figure of both modes, and the ratio.
pub fn table(naps: &[Naps], out: &mut String) {
    let [busy, nap] = naps else { return };
    line(out, format_args!("### Reactors that sleep\n"));
    line(
        out,
        format_args!("| | `--idle busy` | `--idle nap` | ratio |\n|---|---:|---:|---:|"),
    );
    for (busy, nap) in busy.figures.iter().zip(&nap.figures) {
        let (name, busy, nap) = (nap.name, &busy.value, &nap.value);
        let ratio = Rounds::ratio(nap, busy).map_or(f64::NAN, |ratio| ratio.median);
        let _ = writeln!(
            out,
            "| {name} | {:.1} | {:.1} ({:.1} to {:.1}) | {ratio:.3} |",
            busy.median, nap.median, nap.min, nap.max
        );
    }
    line(out, format_args!(""));
}

pub async fn run(settings: &Settings) -> Result<Vec<Naps>> {
    let mut found = MODES.map(|_| Vec::new());
    for round in 0..settings.line.rounds {
        eprintln!("idle: round {} of {}", round + 1, settings.line.rounds);
        let mut order = [0, 1];
        if round % 2 == 1 {
            order.reverse();
        }
        for mode in order {
            let figures = measure(settings, MODES[mode]).await;
            found[mode].push(figures.with_context(|| format!("--idle {}", MODES[mode]))?);
        }
    }
    let of = MODES.iter().zip(found).map(|(mode, rounds)| {
        let names = rounds.first().context("no rounds")?.iter();
        let figures = names.enumerate().map(|(at, first)| {
            let values = rounds.iter().map(|round| round[at].value).collect();
            Ok(Figure {
                name: first.name,
                goal: first.goal,
                value: Rounds::of(values).context("no rounds")?,
            })
        });
        let figures = figures.collect::<Result<_>>()?;
        Ok(Naps { mode, figures })
    });
    of.collect()
}

/// Starts a target in this mode.
async fn started(settings: &Settings, mode: &str) -> Result<Opi> {
    let mut start = Start::new(settings, Counters::Unwanted);
    start.options.push(format!("--idle={mode}"));
    Opi::start_so(settings, &start).await
}

/// Takes the figures of one mode, once.
async fn measure(settings: &Settings, mode: &str) -> Result<Vec<Figure<f64>>> {
    let mut opi = started(settings, mode).await?;
    let attach = opi
        .export(settings, Volume::Malloc, Export::NvmeTcp)
        .await?;
    let address = Address::Grpc(opi.port);
    let mut client = Client::connect(&address).await?;
    for number in 1..VOLUMES {
        let id = format!("nap-{number}");
        client.call(Verb::Create, &id).await?;
        opi.add_namespace(&format!("volumes/{id}")).await?;
    }
    let identity = Identity::new(port(&attach)?, NQN);
    let connected = tokio::task::spawn_blocking(move || identity.hosts(HOSTS));
    let mut hosts = connected.await?;
    let reactor = settings.reactor();
    let idle = opi.process.works_at(&reactor, WINDOW).await?;
    let mut io = hosts.pop().context("no host")?;
    let mut read = move || Ok(io.1.read(1, 0, 1).map(drop)?);
    let reads = tokio::task::spawn_blocking(move || after_pauses(&mut read)).await??;
    let figure = |name, goal, value| Figure { name, goal, value };
    let mut figures = vec![
        figure("reactor without I/O, % of a core", Some(NO_IO), idle),
        figure("read after a pause, p50, µs", None, reads.p50_us),
        figure("read after a pause, p99, µs", Some(WOKEN), reads.p99_us),
    ];
    for (name, queue_depth) in [
        ("4 KiB reads, depth 1, IOPS", 1),
        ("4 KiB reads, depth 32, IOPS", 32),
    ] {
        let load = Load::random(Workload::RandRead, queue_depth);
        let seconds = settings.line.seconds;
        let measured = Initiator::Perf
            .run(settings, &attach, load, seconds)
            .await?;
        figures.push(figure(name, Some(IOPS), measured.iops));
    }
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        client.call(Verb::Stats, "nap-1").await?;
        times.push(begun.elapsed());
    }
    let calls = Latency::of(times).context("no calls")?;
    figures.push(figure("Stats, p50, µs", Some(CALLS_RATIO), calls.p50_us));
    figures.push(figure("Stats, p99, µs", None, calls.p99_us));
    drop(hosts);
    opi.stop().await?;
    for machine in Machine::ALL {
        figures.extend(machine.measure(settings, mode).await?);
    }
    Ok(figures)
}

/// How a virtual machine sees the disk.
#[derive(Clone, Copy)]
enum Machine {
    VfioUser,
    VirtioBlk,
}

impl Machine {
    const ALL: [Self; 2] = [Self::VfioUser, Self::VirtioBlk];

    fn export(self) -> Export {
        match self {
            Self::VfioUser => Export::VfioUser,
            Self::VirtioBlk => Export::VhostUserBlk,
        }
    }

    /// Names of [`Self::measure`]'s figures.
    fn names(self) -> [&'static str; 3] {
        match self {
            Self::VfioUser => [
                "vfio-user: reactor without I/O, % of a core",
                "vfio-user: read after a pause, p50, µs",
                "vfio-user: read after a pause, p99, µs",
            ],
            Self::VirtioBlk => [
                "virtio-blk: reactor without I/O, % of a core",
                "virtio-blk: read after a pause, p50, µs",
                "virtio-blk: read after a pause, p99, µs",
            ],
        }
    }

    /// Takes the figures of a target with this export and one guest.
    async fn measure(self, settings: &Settings, mode: &str) -> Result<Vec<Figure<f64>>> {
        let mut opi = started(settings, mode).await?;
        let attach = opi.export(settings, Volume::Malloc, self.export()).await?;
        let mut disk = tokio::task::spawn_blocking(move || self.open(&attach)).await??;
        let reactor = settings.reactor();
        let idle = opi.process.works_at(&reactor, WINDOW).await?;
        let reads = tokio::task::spawn_blocking(move || after_pauses(&mut disk)).await??;
        opi.stop().await?;
        let figures = [
            (Some(NO_IO), idle),
            (None, reads.p50_us),
            (Some(POLLED), reads.p99_us),
        ];
        let named = self.names().into_iter().zip(figures);
        Ok(named
            .map(|(name, (goal, value))| Figure { name, goal, value })
            .collect())
    }

    /// Connects a guest; returns what reads 4 KiB.
    fn open(self, attach: &Attach) -> Result<Box<dyn FnMut() -> Result<()> + Send>> {
        match (self, attach) {
            (Self::VfioUser, Attach::Nvme { keys, .. }) => {
                let directory = keys.iter().find(|(key, _)| *key == "traddr");
                let directory = &directory.context("no directory")?.1;
                let mut guest = Guest::start(&Path::new(directory).join("cntrl"));
                Ok(Box::new(move || {
                    let read = guest.io(Command::rw(io::READ, 0, 8).prps(DATA, 0));
                    anyhow::ensure!(read.is_ok(), "a read fails: {read:?}");
                    Ok(())
                }))
            }
            (Self::VirtioBlk, Attach::VhostUser { socket, .. }) => {
                let mut disk = Disk::open(Kind::Blk, socket)?;
                Ok(Box::new(move || Ok(disk.read(0, 4096).map(drop)?)))
            }
            _ => anyhow::bail!("an address of another export"),
        }
    }
}

fn port(attach: &Attach) -> Result<u16> {
    let Attach::Nvme { keys, .. } = attach else {
        anyhow::bail!("it is not exported over NVMe/TCP");
    };
    let port = keys.iter().find(|(key, _)| *key == "trsvcid");
    Ok(port.context("no port")?.1.parse()?)
}

/// Times reads that come one by one after a pause.
fn after_pauses(read: &mut dyn FnMut() -> Result<()>) -> Result<Latency> {
    let mut times = Vec::new();
    for _ in 0..READS {
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        read()?;
        times.push(begun.elapsed());
    }
    Latency::of(times).context("no reads")
}
