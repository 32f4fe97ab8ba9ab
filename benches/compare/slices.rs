//! Cost of scrapes and of latencies per volume for I/O: one target during a continuous run of I/O, in slices with and
//! without, so that other activity of the machine affects both. Latencies also in SPDK's bdevperf, where an I/O is little
//! more than what counts it, so that their cost stands out.
//!
//! Four slices, without, with, with, without, are a quad: what changes steadily over a quad affects both sides alike. A
//! single quad says little on a shared machine, the median of hundreds a lot. Its standard error is calculated from the
//! median deviation, since a few quads are far off when another program had the core.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper::Method;
use rustix::process::Signal;
use serde::Serialize;
use serde_json::{Value, json};

use crate::http::Http;
use crate::initiator::Background;
use crate::jsonrpc::JsonRpc;
use crate::opi::{Counters, Opi, Start};
use crate::process::Process;
use crate::reactor::ReactorTime;
use crate::report::line;
use crate::scenario::{Export, Volume};
use crate::settings::Settings;
use crate::stats::Rounds;

/// A feature that is switched during a run of I/O.
#[derive(Debug, Clone, Copy)]
struct Feature {
    name: &'static str,
    switch: Switch,
    /// Quads per round.
    quads: u32,
    /// Duration of a slice.
    slice: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    Latencies,
    /// One scrape per slice.
    Scrape,
}

const LATENCIES: Feature = Feature {
    name: "latencies by volume",
    switch: Switch::Latencies,
    quads: 300,
    slice: Duration::from_millis(25),
};

const SCRAPES: Feature = Feature {
    name: "a scrape each second",
    switch: Switch::Scrape,
    quads: 5,
    slice: Duration::from_secs(1),
};

/// Timeout of bdevperf's start.
const START: Duration = Duration::from_secs(30);

/// Name of the row, and of the scenario on the command line.
pub const BDEVPERF: &str = "bdevperf";

/// Ratios of with to without of one feature, per quad.
#[derive(Debug, Clone, Serialize)]
pub struct Slices {
    pub what: &'static str,
    pub over: &'static str,
    pub slice_ms: u64,
    pub iops: Rounds,
    pub iops_error: f64,
    /// Reactor time per I/O.
    pub reactor: Rounds,
    pub reactor_error: f64,
    /// Medians without the feature.
    pub iops_without: f64,
    pub reactor_ns_without: f64,
}

impl Slices {
    /// Additional reactor time per I/O, in nanoseconds.
    pub fn more_ns(&self) -> f64 {
        (self.reactor.median - 1.0) * self.reactor_ns_without
    }

    /// Its standard error.
    pub fn error_ns(&self) -> f64 {
        self.reactor_error * self.reactor_ns_without
    }
}

/// Formats a table.
pub fn table(slices: &[Slices], out: &mut String) {
    line(out, format_args!("### Switched during a run of I/O\n"));
    line(
        out,
        format_args!(
            "4 KiB random reads, depth 32; median of the quads of slices, and its standard error.\n\n\
             | | over | quads, slice | without: IOPS | ns per I/O | IOPS, on to off | reactor time per I/O, on to off | ns more |\n\
             |---|---|---:|---:|---:|---:|---:|---:|"
        ),
    );
    for of in slices {
        let _ = writeln!(
            out,
            "| {} | {} | {}, {} ms | {:.0} | {:.0} | {:.4} ± {:.4} | {:.4} ± {:.4} | {:.1} ± {:.1} |",
            of.what,
            of.over,
            of.iops.rounds.len(),
            of.slice_ms,
            of.iops_without,
            of.reactor_ns_without,
            of.iops.median,
            of.iops_error,
            of.reactor.median,
            of.reactor_error,
            of.more_ns(),
            of.error_ns(),
        );
    }
    line(out, format_args!(""));
}

pub async fn run(settings: &Settings) -> Result<Vec<Slices>> {
    let mut all = Vec::new();
    // Latencies first, since a scrape leaves them enabled.
    for (scenario, over, export, features) in [
        (
            "nvme-tcp",
            "NVMe/TCP",
            Export::NvmeTcp,
            &[LATENCIES, SCRAPES][..],
        ),
        ("vfio-user", "vfio-user", Export::VfioUser, &[LATENCIES]),
    ] {
        let runs = !export.needs_hugepages() || !settings.no_huge();
        if !runs || !settings.wants(scenario) {
            continue;
        }
        let measured = over_export(settings, over, export, features).await;
        all.extend(measured.context(over)?);
    }
    if settings.wants(BDEVPERF) {
        all.push(in_bdevperf(settings).await.context(BDEVPERF)?);
    }
    Ok(all)
}

/// Latencies of a null bdev in bdevperf, on the target's core.
async fn in_bdevperf(settings: &Settings) -> Result<Slices> {
    let file = |name: &str| settings.scratch().join(name);
    let (config, socket) = (file("null.json"), file("null.sock"));
    let params = json!({ "name": "null", "num_blocks": 1_u64 << 20, "block_size": 512 });
    let bdevs = json!([{ "method": "bdev_null_create", "params": params }]);
    let json = json!({ "subsystems": [{ "subsystem": "bdev", "config": bdevs }] });
    std::fs::write(&config, json.to_string()).context("bdevperf's configuration")?;
    let core = format!("[{}]", settings.cores.target);
    let (config, path) = (config.display().to_string(), socket.display().to_string());
    let arguments = [
        "-m",
        &core,
        "-r",
        &path,
        "-c",
        &config,
        "-q",
        "32",
        "-o",
        "4096",
        "-w",
        "randread",
        "-t",
        "600",
        "-s",
        "512",
        "--no-huge",
        "--no-pci",
    ];
    let mut process = Process::start(
        BDEVPERF,
        &settings.log_dir(),
        &settings.cores.process,
        &settings.tool("bdevperf"),
        &arguments,
    )?;
    let rpc = process
        .poll_until("JSON-RPC", START, async || JsonRpc::connect(&socket).await)
        .await?;
    let mut watched = Watched { rpc, http_port: 0 };
    process
        .poll_until("I/O", START, async || match watched.count().await?.reads {
            0.0 => bail!("no I/O yet"),
            _ => Ok(()),
        })
        .await?;
    eprintln!("{} in {BDEVPERF}", LATENCIES.name);
    // It is killed when it is dropped: at SIGINT it would report failure.
    watched
        .compare(BDEVPERF, LATENCIES, settings.line.rounds)
        .await
}

async fn over_export(
    settings: &Settings,
    over: &'static str,
    export: Export,
    features: &[Feature],
) -> Result<Vec<Slices>> {
    let start = Start::new(settings, Counters::Wanted);
    let mut opi = Opi::start_so(settings, &start).await?;
    let attach = opi.export(settings, Volume::Malloc, export).await?;
    let socket = opi.rpc_socket.as_deref().context("no JSON-RPC")?;
    let mut watched = Watched {
        rpc: JsonRpc::connect(socket).await?,
        http_port: opi.http_port,
    };
    let load = Background::start(settings, &attach).await?;
    let mut all = Vec::new();
    for &feature in features {
        eprintln!("{} over {over}", feature.name);
        all.push(watched.compare(over, feature, settings.line.rounds).await?);
    }
    load.stop().await?;
    opi.process.stop(Signal::TERM).await?;
    Ok(all)
}

struct Watched {
    rpc: JsonRpc,
    http_port: u16,
}

/// Reads of all volumes, and the time of the reading by SPDK's own clock.
struct Count {
    reads: f64,
    seconds: f64,
}

/// One or more slices.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    reads: f64,
    seconds: f64,
    busy_ns: f64,
}

impl Taken {
    fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.seconds += other.seconds;
        self.busy_ns += other.busy_ns;
    }

    fn iops(self) -> f64 {
        self.reads / self.seconds
    }

    fn reactor_ns(self) -> f64 {
        self.busy_ns / self.reads
    }
}

impl Watched {
    async fn compare(
        &mut self,
        over: &'static str,
        feature: Feature,
        rounds: u32,
    ) -> Result<Slices> {
        let (mut iops, mut reactor) = (Vec::new(), Vec::new());
        let mut without = (Vec::new(), Vec::new());
        for quad in 0..feature.quads * rounds {
            let mut sides = [Taken::default(); 2];
            let inner = quad % 2 == 0;
            for on in [!inner, inner, inner, !inner] {
                let slice = self.slice(feature, on).await?;
                sides[usize::from(on)].add(slice);
            }
            let [off, on] = sides;
            iops.push(on.iops() / off.iops());
            reactor.push(on.reactor_ns() / off.reactor_ns());
            without.0.push(off.iops());
            without.1.push(off.reactor_ns());
        }
        let of = |values| Rounds::of(values).context("no quads");
        let (iops, reactor) = (of(iops)?, of(reactor)?);
        Ok(Slices {
            what: feature.name,
            over,
            slice_ms: u64::try_from(feature.slice.as_millis())?,
            iops_error: iops.error_of_median(),
            reactor_error: reactor.error_of_median(),
            iops,
            reactor,
            iops_without: of(without.0)?.median,
            reactor_ns_without: of(without.1)?.median,
        })
    }

    async fn slice(&mut self, feature: Feature, on: bool) -> Result<Taken> {
        if feature.switch == Switch::Latencies {
            self.count_latencies(on).await?;
        }
        let begun = Instant::now();
        let before = self.count().await?;
        let reactor = ReactorTime::read(&mut self.rpc).await?;
        if feature.switch == Switch::Scrape && on {
            // A new connection, since the target closes idle ones.
            let mut http = Http::connect(self.http_port).await?;
            http.body(Method::GET, "/metrics", None).await?;
        }
        tokio::time::sleep(feature.slice.saturating_sub(begun.elapsed())).await;
        let after = self.count().await?;
        let busy_ns = ReactorTime::read(&mut self.rpc)
            .await?
            .busy_ns_since(reactor);
        Ok(Taken {
            reads: after.reads - before.reads,
            seconds: after.seconds - before.seconds,
            busy_ns,
        })
    }

    /// Enables or disables histograms of the shape that a scrape enables.
    async fn count_latencies(&mut self, enable: bool) -> Result<()> {
        for bdev in self.statistics().await?.bdevs {
            let shape = json!({
                "name": bdev["name"], "enable": enable, "granularity": 2, "min_nsec": 1_000,
                "max_nsec": 16_000_000_000_u64,
            });
            self.rpc.call("bdev_enable_histogram", shape).await?;
        }
        Ok(())
    }

    async fn count(&mut self) -> Result<Count> {
        let statistics = self.statistics().await?;
        let reads = statistics.bdevs.iter();
        Ok(Count {
            reads: reads.filter_map(|of| of["num_read_ops"].as_f64()).sum(),
            seconds: statistics.seconds,
        })
    }

    async fn statistics(&mut self) -> Result<Statistics> {
        let mut answer = self.rpc.call("bdev_get_iostat", Value::Null).await?;
        let number = |key: &str| answer[key].as_f64().context(key.to_owned());
        let seconds = number("ticks")? / number("tick_rate")?;
        let bdevs = serde_json::from_value(answer["bdevs"].take())?;
        Ok(Statistics { seconds, bdevs })
    }
}

struct Statistics {
    seconds: f64,
    bdevs: Vec<Value>,
}
