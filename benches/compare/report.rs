//! The results: raw as JSON, and as Markdown tables for docs/performance.md.

use std::fmt::Write;

use serde::Serialize;

use crate::client::{Subject, Verb};
use crate::control::{self, Control, Load};
use crate::cost::{Cost, Longest, RATE};
use crate::creates::{self, Creates};
use crate::data_path::{self, DataPath};
use crate::idle::{self, Idle};
use crate::latency;
use crate::machine::Machine;
use crate::naps::{self, Naps};
use crate::scale::Scale;
use crate::sight::Sight;
use crate::slices::{self, Slices};
use crate::stats::Rounds;
use crate::verdict::Verdict;

/// Preemptions of a reactor per second above which other work on its core distorts the results.
const BUSY_PREEMPTIONS: f64 = 20.0;

/// The results of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub conditions: Conditions,
    pub data_path: DataPath,
    pub control: Control,
    pub cost: Vec<Cost>,
    pub scale: Option<Scale>,
    pub sight: Option<Sight>,
    pub creates: Vec<Creates>,
    pub slices: Vec<Slices>,
    pub idle: Vec<Idle>,
    pub naps: Vec<Naps>,
    pub latency: Vec<latency::Point>,
    pub verdicts: Vec<Verdict>,
    /// Failures, by part.
    pub failures: Vec<String>,
}

/// Parameters of the run.
#[derive(Debug, Clone, Serialize)]
pub struct Conditions {
    pub rounds: u32,
    pub seconds: u32,
    pub noise: bool,
    pub volume_mib: u64,
    pub target_core: String,
    pub load_core: String,
    pub control_cores: String,
    /// Why hugepages were not used, if so.
    pub without_hugepages: Option<String>,
    /// Time stolen by the hypervisor during the run, in seconds summed over the cores.
    pub stolen_seconds: f64,
    pub took_seconds: f64,
}

impl Report {
    /// Formats the tables.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        self.heading(&mut out);
        if !self.data_path.points.is_empty() || !self.data_path.missing.is_empty() {
            self.data_table(&mut out);
        }
        if !self.control.points.is_empty() {
            self.control_table(&mut out);
        }
        if !self.cost.is_empty() {
            self.cost_table(&mut out);
        }
        if let Some(scale) = &self.scale {
            scale.table(&mut out);
        }
        if let Some(sight) = &self.sight {
            sight.table(&mut out);
        }
        if !self.creates.is_empty() {
            creates::table(&self.creates, &mut out);
        }
        if !self.slices.is_empty() {
            slices::table(&self.slices, &mut out);
        }
        if !self.idle.is_empty() {
            idle::table(&self.idle, &mut out);
        }
        naps::table(&self.naps, &mut out);
        if !self.latency.is_empty() {
            latency::table(&self.latency, &mut out);
        }
        self.verdict_table(&mut out);
        out
    }

    fn heading(&self, out: &mut String) {
        let Machine {
            date,
            cpu,
            cores,
            kernel,
            memory_gib,
            hypervisor,
            spdk,
            fio,
            ..
        } = &self.machine;
        let kind = if *hypervisor {
            "virtual machine"
        } else {
            "machine"
        };
        let Conditions {
            rounds,
            seconds,
            target_core,
            load_core,
            control_cores,
            ..
        } = &self.conditions;
        line(
            out,
            format_args!(
                "Taken on {date} on a {kind} with {cores} cores ({cpu}), {memory_gib:.0} GiB, Linux {kernel}; {spdk}, {fio}. \
             Reactor on core {target_core}, initiator on core {load_core}, control threads and clients on {control_cores}; \
             {rounds} rounds in alternating order, {seconds} s a data-path run, {} MiB volume.",
                self.conditions.volume_mib,
            ),
        );
        if let Some(reason) = &self.conditions.without_hugepages {
            line(
                out,
                format_args!("All sides ran without hugepages ({reason})."),
            );
        }
        let stolen = self.conditions.stolen_seconds / self.conditions.took_seconds;
        if stolen > 0.01 {
            line(
                out,
                format_args!(
                    "The hypervisor took {:.0} % of a core away meanwhile.",
                    stolen * 100.0
                ),
            );
        }
        for failure in &self.failures {
            line(out, format_args!("**Not measured:** {failure}"));
        }
        out.push('\n');
    }

    fn data_table(&self, out: &mut String) {
        let ours = if self.conditions.noise {
            "spdk_tgt (again)"
        } else {
            "opi-spdk"
        };
        line(
            out,
            format_args!("### Data path: thousand IOPS, and reactor time per I/O\n"),
        );
        line(
            out,
            format_args!(
                "| export | initiator | I/O | KiB | depth | {ours} | spdk_tgt | ratio | ratio by round | reactor, ns | spdk_tgt's | ratio |"
            ),
        );
        line(
            out,
            format_args!("|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"),
        );
        for point in &self.data_path.points {
            let data_path::Point {
                scenario,
                initiator,
                load,
                ..
            } = point;
            let (ratio, each) = match &point.ratio {
                Some(ratio) => (
                    format!("{:.3}", ratio.median),
                    format!("{:.3} to {:.3}", ratio.min, ratio.max),
                ),
                None => Default::default(),
            };
            line(
                out,
                format_args!(
                    "| {scenario} | {} | {} | {} | {} | {} | {} | {ratio} | {each} | {} | {} | {} |",
                    initiator.name(),
                    load.name(),
                    load.bytes >> 10,
                    load.queue_depth,
                    kiops(point.opi_spdk.iops.as_ref()),
                    kiops(point.spdk_tgt.iops.as_ref()),
                    rounded(point.opi_spdk.reactor_ns.as_ref(), 0),
                    rounded(point.spdk_tgt.reactor_ns.as_ref(), 0),
                    rounded(point.reactor_ratio.as_ref(), 3),
                ),
            );
        }
        out.push('\n');
        line(
            out,
            format_args!(
                "IOPS: median of the rounds ± half of their spread. Ratio: median of those of the rounds, in each of \
                 which both sides had their run right after one another. Reactor: the time in which it was busy, by SPDK's \
                 own count, for an I/O. Depth: for each namespace, on all its connections.\n"
            ),
        );
        let runs = self
            .data_path
            .points
            .iter()
            .flat_map(|point| point.opi_spdk.runs.iter().chain(&point.spdk_tgt.runs));
        let (count, preemptions) = runs.fold((0, 0), |(count, sum), run| {
            (count + 1, sum + run.preemptions)
        });
        let a_second = preemptions as f64 / f64::from(self.conditions.seconds * count.max(1));
        if a_second > BUSY_PREEMPTIONS {
            line(
                out,
                format_args!(
                    "The machine was not idle: the reactors lost their core {a_second:.0} times a second.\n"
                ),
            );
        }
        for missing in &self.data_path.missing {
            line(
                out,
                format_args!("Not measured: {}: {}\n", missing.scenario, missing.reason),
            );
        }
    }

    fn control_table(&self, out: &mut String) {
        line(
            out,
            format_args!("### Configuration calls on a null volume\n"),
        );
        line(
            out,
            format_args!(
                "Latency p50 / p99 in µs, and calls per second. \"Floor\" is a gRPC server that does nothing.\n"
            ),
        );
        line(
            out,
            format_args!(
                "| data path | clients | call | opi-spdk gRPC | opi-spdk HTTP | floor gRPC | spdk_tgt JSON-RPC | p50 to floor | faster than JSON-RPC, p50 / p99 |"
            ),
        );
        line(
            out,
            format_args!("|---|---:|---|---:|---:|---:|---:|---:|---:|"),
        );
        for ours in self
            .control
            .points
            .iter()
            .filter(|point| point.subject == Subject::Opi)
        {
            let other = |subject| {
                self.control
                    .find(subject, ours.verb, ours.clients, ours.load)
            };
            let http = other(Subject::OpiHttp);
            let (floor, json) = (other(Subject::Floor), other(Subject::SpdkTgt));
            let to_floor =
                floor.map(|floor| format!("{:.2}", ours.latency.p50_us / floor.latency.p50_us));
            let faster = json.map(|json| {
                let p50 = json.latency.p50_us / ours.latency.p50_us;
                let p99 = json.latency.p99_us / ours.latency.p99_us;
                format!("{p50:.1} / {p99:.1}")
            });
            line(
                out,
                format_args!(
                    "| {} | {} | {:?} | {} | {} | {} | {} | {} | {} |",
                    load(ours.load),
                    ours.clients,
                    ours.verb,
                    control_cell(Some(ours)),
                    control_cell(http),
                    control_cell(floor),
                    control_cell(json),
                    to_floor.unwrap_or_default(),
                    faster.unwrap_or_default(),
                ),
            );
        }
        out.push('\n');
        let shares = self.conditions.load_core == self.conditions.control_cores;
        if shares && !self.control.data_path.is_empty() {
            line(
                out,
                format_args!(
                    "The initiator that saturates the data path shares its core with the clients and the control threads."
                ),
            );
        }
        out.push('\n');
    }

    fn cost_table(&self, out: &mut String) {
        line(
            out,
            format_args!("### What configuration costs the reactor\n"),
        );
        line(
            out,
            format_args!(
                "Create, Get, Stats and Delete of null volumes in equal parts, {RATE} calls per second.\n"
            ),
        );
        line(
            out,
            format_args!(
                "| target | data path | calls per second | per call, µs | in control steps, µs | share of the reactor | longest hold, µs | preempted |"
            ),
        );
        line(out, format_args!("|---|---|---:|---:|---:|---:|---:|---:|"));
        for cost in &self.cost {
            let longest = match cost.longest {
                Longest::Counted(us) => format!("{us:.0}"),
                Longest::AtLeast(us) => format!("at least {us:.0}"),
            };
            let us = |us: Option<f64>| us.map(|us| format!("{us:.1}")).unwrap_or_default();
            line(
                out,
                format_args!(
                    "| {} | {} | {:.0} | {} | {} | {:.2} % | {longest} | {} times |",
                    cost.side,
                    load(cost.load),
                    cost.calls_per_second,
                    us(cost.call_us),
                    us(cost.steps_us),
                    cost.share() * 100.0,
                    cost.preemptions,
                ),
            );
        }
        out.push('\n');
        line(
            out,
            format_args!(
                "Per call: SPDK's own count of the reactor's busy time, less what it counts without calls; the same on \
                 both sides. In control steps: what opi-spdk times itself, also while I/O runs. Longest: of opi-spdk, \
                 its longest control step; spdk_tgt does not count it, and the bound is the mean time of a turn of its \
                 JSON-RPC poller. A hold includes what the kernel ran on that core meanwhile (preempted). The share is \
                 for {RATE} calls per second, by whichever count is larger.\n"
            ),
        );
    }

    fn verdict_table(&self, out: &mut String) {
        if self.verdicts.is_empty() {
            return;
        }
        line(out, format_args!("### Targets\n"));
        line(out, format_args!("| target | reached | |"));
        line(out, format_args!("|---|---|---|"));
        for Verdict {
            target,
            reached,
            met,
        } in &self.verdicts
        {
            let met = if *met { "met" } else { "**not met**" };
            line(out, format_args!("| {target} | {reached} | {met} |"));
        }
    }
}

impl Control {
    pub fn find(
        &self,
        subject: Subject,
        verb: Verb,
        clients: usize,
        load: Load,
    ) -> Option<&control::Point> {
        let wanted = (subject, verb, clients, load);
        self.points
            .iter()
            .find(|p| (p.subject, p.verb, p.clients, p.load) == wanted)
    }
}

pub(crate) fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn load(load: Load) -> &'static str {
    match load {
        Load::Idle => "idle",
        Load::Saturated => "saturated",
    }
}

fn kiops(iops: Option<&Rounds>) -> String {
    iops.map_or_else(String::new, |iops| {
        format!("{:.1} ±{:.1} %", iops.median / 1000.0, iops.spread() * 50.0)
    })
}

/// The median with this many decimals.
fn rounded(rounds: Option<&Rounds>, digits: usize) -> String {
    rounds.map_or_else(String::new, |rounds| format!("{:.digits$}", rounds.median))
}

fn control_cell(point: Option<&control::Point>) -> String {
    point.map_or_else(String::new, |point| {
        let latency = &point.latency;
        let rate = point.calls_per_second.median;
        format!("{:.0} / {:.0}, {rate:.0}/s", latency.p50_us, latency.p99_us)
    })
}
