//! What the figures in docs/performance.md come from: opi-spdk beside SPDK's own target, and beside a gRPC server
//! that does nothing. `scripts/bench.sh --help` tells how to run it.
//!
//! ```text
//! scenario ─ the table of data-path rows     client ─ the calls of the control rows
//!     │                                          │
//! data_path  control  cost  scale  sight  creates  slices  idle  naps  latency ──► verdict ──► report (bench.md,
//!     └─────────┼──────┴──────┴──────┴───────┴────────┴──────┴─────┴──────┘                      bench.json), chart
//!    target: opi | spdk_tgt, remote     initiator: spdk_nvme_perf | fio | bdevperf     floor       (bench.svg)
//! ```

#![forbid(unsafe_code)]

mod attach;
mod chart;
mod client;
mod control;
mod cost;
mod creates;
mod data_path;
mod durable;
mod floor;
#[expect(dead_code, reason = "of the tests, more than is used here")]
#[path = "../../tests/common/nvme_tcp/host.rs"]
mod host;
mod http;
mod idle;
mod initiator;
#[path = "../../tests/common/jsonrpc.rs"]
mod jsonrpc;
mod latency;
mod machine;
mod naps;
mod opi;
#[expect(dead_code, reason = "of the tests, more than is used here")]
#[path = "../../tests/common/nvme_tcp/pdu.rs"]
mod pdu;
mod process;
mod reactor;
mod remote;
mod report;
mod scale;
mod scenario;
mod settings;
mod sight;
mod slices;
mod spdk_tgt;
mod stats;
mod target;
mod verdict;
#[expect(
    dead_code,
    unused_imports,
    reason = "of the tests, more than is used here"
)]
#[path = "../../tests/common/vfio_user/mod.rs"]
mod vfio_user;
#[expect(
    dead_code,
    unused_imports,
    reason = "of the tests, more than is used here"
)]
#[path = "../../tests/common/vhost_user/mod.rs"]
mod vhost_user;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser};
use serde_json::Value;

use crate::control::Control;
use crate::data_path::DataPath;
use crate::machine::Machine;
use crate::report::{Conditions, Report};
use crate::settings::{CommandLine, Part, Settings};

/// The same allocator as opi-spdk, for the floor.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match start(CommandLine::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(line: CommandLine) -> Result<ExitCode> {
    if let Some(port) = line.floor {
        floor::serve(port)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !line.bench {
        // `cargo test --all-targets` also runs benches; a full run would take ten minutes.
        println!("{}", CommandLine::command().render_help());
        return Ok(ExitCode::SUCCESS);
    }
    if !line.chart.is_empty() {
        let reports: Result<Vec<_>> = line.chart.iter().map(read).collect();
        draw(&line.output, reports?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let settings = Settings::new(line)?;
    // Before any thread is started, since threads inherit the affinity.
    settings
        .cores
        .control
        .pin_current_thread()
        .context("pinning the clients")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.cores.control.iter().count())
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure(&settings))?;
    write(&settings, &report)
}

async fn measure(settings: &Settings) -> Result<Report> {
    let machine = Machine::read(&settings.tool("spdk_tgt"))?;
    let begun = Instant::now();
    let stolen = machine::stolen_ticks()?;
    let mut failures = Vec::new();
    let data_path = match settings.runs(Part::Data) {
        true => data_path::run(settings).await,
        false => DataPath::default(),
    };
    let failed = data_path.missing.iter().filter(|missing| missing.failed);
    failures.extend(failed.map(|missing| format!("{}: {}", missing.scenario, missing.reason)));
    let control = match settings.runs(Part::Control) {
        true => or_failed(control::run(settings).await, "control path", &mut failures),
        false => Control::default(),
    };
    let cost = match settings.runs(Part::Cost) {
        true => or_failed(cost::run(settings).await, "reactor cost", &mut failures),
        false => Vec::new(),
    };
    let scale = match settings.runs(Part::Scale) {
        true => or_failed(scale::run(settings).await, "many objects", &mut failures),
        false => None,
    };
    let sight = match settings.runs(Part::Sight) {
        true => or_failed(sight::run(settings).await, "everything seen", &mut failures),
        false => None,
    };
    let creates = match settings.runs(Part::Creates) {
        true => or_failed(creates::run(settings).await, "creates", &mut failures),
        false => Vec::new(),
    };
    let slices = match settings.runs(Part::Slices) {
        true => or_failed(slices::run(settings).await, "slices", &mut failures),
        false => Vec::new(),
    };
    let idle = match settings.runs(Part::Idle) {
        true => or_failed(idle::run(settings).await, "without calls", &mut failures),
        false => Vec::new(),
    };
    let naps = match settings.runs(Part::Naps) {
        true => or_failed(
            naps::run(settings).await,
            "reactors that sleep",
            &mut failures,
        ),
        false => Vec::new(),
    };
    let latency = match settings.runs(Part::Latency) {
        true => or_failed(latency::run(settings).await, "latency", &mut failures),
        false => Vec::new(),
    };
    let conditions = Conditions {
        rounds: settings.line.rounds,
        seconds: settings.line.seconds,
        noise: settings.line.noise,
        volume_mib: settings.line.volume_mib,
        target_core: settings.cores.target.to_string(),
        load_core: settings.cores.load.to_string(),
        control_cores: settings.cores.control.to_string(),
        without_hugepages: settings.without_hugepages().map(str::to_owned),
        stolen_seconds: (machine::stolen_ticks()? - stolen) as f64 / 100.0,
        took_seconds: begun.elapsed().as_secs_f64(),
    };
    Ok(Report {
        verdicts: verdict::all(
            &data_path,
            &control,
            &cost,
            scale.as_ref(),
            &verdict::Seen {
                sight: sight.as_ref(),
                creates: &creates,
                slices: &slices,
                idle: &idle,
            },
            &latency,
            &naps,
        ),
        machine,
        conditions,
        data_path,
        control,
        cost,
        scale,
        sight,
        creates,
        slices,
        idle,
        naps,
        latency,
        failures,
    })
}

/// The result of a part, or a default with the failure recorded.
fn or_failed<T: Default>(result: Result<T>, part: &str, failures: &mut Vec<String>) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("{part}: {error:#}");
        failures.push(format!("{part}: {error:#}"));
        T::default()
    })
}

/// Writes a chart of the reports into this directory, if they have a data path.
fn draw(output: &Path, reports: Vec<Value>) -> Result<()> {
    if let Some(chart) = chart::svg(reports)? {
        let drawing = output.join("bench.svg");
        std::fs::write(&drawing, chart).with_context(|| drawing.display().to_string())?;
    }
    Ok(())
}

/// Reads a bench.json.
fn read(path: &PathBuf) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn write(settings: &Settings, report: &Report) -> Result<ExitCode> {
    let (table, raw) = (
        settings.line.output.join("bench.md"),
        settings.line.output.join("bench.json"),
    );
    let markdown = report.markdown();
    std::fs::write(&table, &markdown).with_context(|| table.display().to_string())?;
    let json = serde_json::to_string_pretty(report)?;
    std::fs::write(&raw, json).with_context(|| raw.display().to_string())?;
    draw(&settings.line.output, vec![serde_json::to_value(report)?])?;
    println!("{markdown}");
    eprintln!("written to {} and {}", table.display(), raw.display());
    if report.failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not all was measured: {}", report.failures.join("; "))
}
