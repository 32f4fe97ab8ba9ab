//! A chart of the data path as SVG: for each point a bar with the ratio of IOPS to those of spdk_tgt. It is drawn from
//! bench.json, so that it can show runs that were made one after the other.

use std::fmt::{self, Write};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::verdict::DATA_RATIO;

/// A logarithmic axis of ratios, from its first to its last tick. A bar that would leave it is cut off, and one that is
/// longer has its number.
struct Axis {
    ticks: &'static [f64],
}

/// The narrowest one that holds all bars is used, the last if none does.
const AXES: [Axis; 3] = [
    Axis {
        ticks: &[0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2],
    },
    Axis {
        ticks: &[0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5],
    },
    Axis {
        ticks: &[0.5, 0.8, 1.0, 1.25, 2.0, 4.0],
    },
];

impl Axis {
    fn of(points: &[&Point]) -> &'static Self {
        let holds = |axis: &&Self| {
            let ratios = points.iter().filter_map(|point| point.ratio.as_ref());
            let mut ratios = ratios.map(|ratio| ratio.median);
            ratios.all(|median| (axis.least()..=axis.most()).contains(&median))
        };
        AXES.iter().find(holds).unwrap_or(&AXES[AXES.len() - 1])
    }

    fn least(&self) -> f64 {
        self.ticks.first().copied().unwrap_or(1.0)
    }

    fn most(&self) -> f64 {
        self.ticks.last().copied().unwrap_or(1.0)
    }

    /// Position of a ratio, in pixels.
    fn place(&self, ratio: f64) -> f64 {
        let (least, most) = (self.least(), self.most());
        let share = (ratio.clamp(least, most) / least).ln() / (most / least).ln();
        share.mul_add(WIDTH - RIGHT - LEFT, LEFT)
    }
}

/// Geometry, in pixels.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 50.0;
const TOP: f64 = 72.0;
const BAR: f64 = 5.0;
const STEP: f64 = 7.0;
const GAP: f64 = 10.0;

/// Colours of bars at or above the goal, and below.
const REACHED: &str = "#2f855a";
const BELOW: &str = "#c05621";

/// What is drawn of a report.
#[derive(Deserialize)]
struct Report {
    machine: Machine,
    data_path: DataPath,
}

#[derive(Deserialize)]
struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    spdk: String,
}

#[derive(Deserialize)]
struct DataPath {
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    scenario: String,
    initiator: String,
    workload: String,
    bytes: u32,
    queue_depth: u32,
    rate: Option<u32>,
    ratio: Option<Ratio>,
}

#[derive(Deserialize)]
struct Ratio {
    median: f64,
    min: f64,
    max: f64,
}

/// Draws all points of reports of one machine that have a ratio. At a fixed rate it says nothing, so these are left
/// out. `None` without any.
pub fn svg(reports: Vec<Value>) -> Result<Option<String>> {
    let reports = reports.into_iter().map(serde_json::from_value::<Report>);
    let reports = reports.collect::<Result<Vec<_>, _>>();
    let reports = reports.context("a report that is no bench.json")?;
    let points = reports.iter().flat_map(|report| &report.data_path.points);
    let shown = |point: &&Point| point.rate.is_none() && point.ratio.is_some();
    let points: Vec<_> = points.filter(shown).collect();
    let Some(last) = reports.last().filter(|_| !points.is_empty()) else {
        return Ok(None);
    };
    let key = |point: &Point| (point.scenario.clone(), point.initiator.clone());
    let groups: Vec<_> = points.chunk_by(|a, b| key(a) == key(b)).collect();
    let mut out = String::new();
    draw(&groups, Axis::of(&points), &last.machine, &mut out)?;
    Ok(Some(out))
}

fn draw(groups: &[&[&Point]], axis: &Axis, machine: &Machine, out: &mut String) -> fmt::Result {
    let bars: usize = groups.iter().map(|group| group.len()).sum();
    let bottom = (bars as f64).mul_add(STEP, TOP) + groups.len() as f64 * GAP;
    let height = bottom + 20.0;
    writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11" fill="#1a202c">
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="10" y="18" font-size="14">IOPS of opi-spdk, relative to those of spdk_tgt</text>
<text x="10" y="34" fill="#4a5568">{}, {} cores, {}; {}</text>
<text x="10" y="48" fill="#4a5568">A bar is an I/O size, direction and depth; the thin line is the range of the rounds.</text>"##,
        escaped(&machine.cpu),
        machine.cores,
        escaped(release(&machine.spdk)),
        escaped(&machine.date),
    )?;
    for &tick in axis.ticks {
        let (x, colour) = (
            axis.place(tick),
            if tick == 1.0 { "#1a202c" } else { "#cbd5e0" },
        );
        writeln!(
            out,
            r#"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom:.1}" stroke="{colour}"/>
<text x="{x:.1}" y="{:.1}" text-anchor="middle">{tick}</text>"#,
            TOP - 5.0
        )?;
    }
    let mut y = TOP + GAP / 2.0;
    for group in groups {
        let Some(first) = group.first() else { continue };
        let middle = (group.len() as f64).mul_add(STEP / 2.0, y) + 3.0;
        writeln!(
            out,
            r#"<text x="{:.1}" y="{middle:.1}" text-anchor="end">{}, {}</text>"#,
            LEFT - 8.0,
            first.scenario,
            first.initiator,
        )?;
        for point in *group {
            if let Some(ratio) = &point.ratio {
                bar(point, ratio, axis, y, out)?;
            }
            y += STEP;
        }
        y += GAP;
    }
    writeln!(out, "</svg>")
}

fn bar(point: &Point, ratio: &Ratio, axis: &Axis, y: f64, out: &mut String) -> fmt::Result {
    let (one, end) = (axis.place(1.0), axis.place(ratio.median));
    let (x, width) = (one.min(end), (end - one).abs().max(0.8));
    let colour = if ratio.median < DATA_RATIO {
        BELOW
    } else {
        REACHED
    };
    let (from, to, middle) = (axis.place(ratio.min), axis.place(ratio.max), y + BAR / 2.0);
    writeln!(
        out,
        r##"<g><title>{}, {}, {} KiB, depth {}: {:.3} ({:.3} to {:.3})</title>
<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}" fill="{colour}"/>
<line x1="{from:.1}" y1="{middle:.1}" x2="{to:.1}" y2="{middle:.1}" stroke="#1a202c" stroke-width="0.7"/></g>"##,
        point.scenario,
        point.workload,
        point.bytes >> 10,
        point.queue_depth,
        ratio.median,
        ratio.min,
        ratio.max,
    )?;
    if ratio.median > axis.most() {
        writeln!(
            out,
            r#"<text x="{:.1}" y="{:.1}" font-size="8">{:.0}</text>"#,
            WIDTH - RIGHT + 4.0,
            y + BAR,
            ratio.median
        )?;
    }
    Ok(())
}

/// The version of SPDK without the hash of its commit.
fn release(version: &str) -> &str {
    version.split(" git sha1").next().unwrap_or(version)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
