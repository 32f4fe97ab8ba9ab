//! Reactors that sleep while they have no work, beside reactors that poll: what it saves, and what it costs.
//!
//! One target a mode and round, with 100 volumes exported and 10 hosts connected: processor time of the reactor without
//! I/O; reads that come one by one after a pause; I/O without a pause; calls.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::attach::Attach;
use crate::client::{Address, Client, Verb};
use crate::host::{Host, Identity};
use crate::initiator::Initiator;
use crate::opi::{Counters, Opi, Start};
use crate::report::line;
use crate::scenario::{Export, Load, NQN, Volume, Workload};
use crate::settings::Settings;
use crate::stats::{Latency, Rounds};

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
    pub figures: Vec<(&'static str, Rounds)>,
}

/// Formats a table: each figure of both modes, and the ratio.
pub fn table(naps: &[Naps], out: &mut String) {
    let [busy, nap] = naps else { return };
    line(out, format_args!("### Reactors that sleep\n"));
    line(
        out,
        format_args!("| | `--idle busy` | `--idle nap` | ratio |\n|---|---:|---:|---:|"),
    );
    for ((name, busy), (_, nap)) in busy.figures.iter().zip(&nap.figures) {
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
        let figures = names.enumerate().map(|(at, (name, _))| {
            let values = rounds.iter().map(|round| round[at].1).collect();
            Ok((*name, Rounds::of(values).context("no rounds")?))
        });
        let figures = figures.collect::<Result<_>>()?;
        Ok(Naps { mode, figures })
    });
    of.collect()
}

/// Takes the figures of one mode, once.
async fn measure(settings: &Settings, mode: &str) -> Result<Vec<(&'static str, f64)>> {
    let mut start = Start::new(settings, Counters::Unwanted);
    start.options.push(format!("--idle={mode}"));
    let mut opi = Opi::start_so(settings, &start).await?;
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
    let reads = tokio::task::spawn_blocking(move || reads(&mut io.1)).await??;
    let mut figures = vec![
        ("reactor without I/O, % of a core", idle),
        ("read after a pause, p50, µs", reads.p50_us),
        ("read after a pause, p99, µs", reads.p99_us),
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
        figures.push((name, measured.iops));
    }
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        client.call(Verb::Stats, "nap-1").await?;
        times.push(begun.elapsed());
    }
    let calls = Latency::of(times).context("no calls")?;
    figures.push(("Stats, p50, µs", calls.p50_us));
    figures.push(("Stats, p99, µs", calls.p99_us));
    drop(hosts);
    opi.stop().await?;
    Ok(figures)
}

fn port(attach: &Attach) -> Result<u16> {
    let Attach::Nvme { keys, .. } = attach else {
        anyhow::bail!("it is not exported over NVMe/TCP");
    };
    let port = keys.iter().find(|(key, _)| *key == "trsvcid");
    Ok(port.context("no port")?.1.parse()?)
}

/// Times reads that come one by one after a pause.
fn reads(host: &mut Host) -> Result<Latency> {
    let mut times = Vec::new();
    for _ in 0..READS {
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        host.read(1, 0, 1)?;
        times.push(begun.elapsed());
    }
    Latency::of(times).context("no reads")
}
