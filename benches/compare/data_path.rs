//! I/O through an exported volume, on both targets in turn.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::initiator::{Initiator, Load, Measured};
use crate::scenario::{Attach, SCENARIOS, Scenario, Workload};
use crate::settings::Settings;
use crate::stats::Rounds;
use crate::target::{Target, Turn};

/// What touches the volume and warms caches and connections before anything is measured.
const WARM_UP: Load = Load {
    workload: Workload::RandWrite,
    queue_depth: 32,
    seconds: 1,
};

/// One point of the comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub scenario: &'static str,
    pub initiator: Initiator,
    pub workload: Workload,
    pub queue_depth: u32,
    pub opi_spdk: Runs,
    pub spdk_tgt: Runs,
    /// I/O per second of opi-spdk, to that of spdk_tgt, round by round.
    pub ratio: Option<Rounds>,
}

/// One side of a point, a run each round.
#[derive(Debug, Clone, Serialize)]
pub struct Runs {
    pub iops: Option<Rounds>,
    pub mean_us: Option<Rounds>,
    pub runs: Vec<Run>,
}

/// A scenario that was left out or failed, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Missing {
    pub scenario: String,
    pub reason: String,
    /// Whether it should have worked.
    pub failed: bool,
}

/// All that this part measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DataPath {
    pub points: Vec<Point>,
    pub missing: Vec<Missing>,
}

/// What came of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    #[serde(flatten)]
    pub measured: Measured,
    /// How often the reactor lost its core meanwhile.
    pub preemptions: u64,
}

/// What a run did: who, what and how deep.
type Io = (Initiator, Workload, u32);

pub async fn run(settings: &Settings) -> DataPath {
    let mut all = DataPath::default();
    for scenario in SCENARIOS
        .iter()
        .filter(|scenario| settings.wants(scenario.name))
    {
        if settings.no_huge() && scenario.export.needs_hugepages() {
            all.leave_out(scenario.name, "it needs hugepages".to_owned(), false);
            continue;
        }
        if settings.no_huge()
            && scenario
                .initiators
                .iter()
                .any(|initiator| initiator.needs_hugepages())
        {
            all.leave_out(
                &format!("{} by fio", scenario.name),
                "SPDK's plugin for fio needs hugepages".to_owned(),
                false,
            );
        }
        match compare(settings, scenario).await {
            Ok(points) => all.points.extend(points),
            Err(error) => {
                eprintln!("{}: {error:#}", scenario.name);
                all.leave_out(scenario.name, format!("{error:#}"), true);
            }
        }
    }
    all
}

impl DataPath {
    fn leave_out(&mut self, scenario: &str, reason: String, failed: bool) {
        self.missing.push(Missing {
            scenario: scenario.to_owned(),
            reason,
            failed,
        });
    }
}

/// All rounds of one scenario. Both targets are up all the while, and each run of one is next to one
/// of the other: a machine that others share is faster and slower by turns, in spells of many seconds.
/// Each round has new ones: which pages of memory a process gets makes it faster or slower for life.
async fn compare(settings: &Settings, scenario: &Scenario) -> Result<Vec<Point>> {
    let mut runs = Vec::new();
    for round in 0..settings.line.rounds {
        eprintln!(
            "{}: round {} of {}",
            scenario.name,
            round + 1,
            settings.line.rounds
        );
        let mut sides = Vec::new();
        for turn in settings.turns(round) {
            let exported = Exported::start(settings, scenario, turn).await;
            sides.push((
                turn.column,
                exported.with_context(|| turn.side.to_string())?,
            ));
        }
        sides.sort_by_key(|(column, _)| *column);
        for (number, io) in (round..).zip(ios(settings, scenario)) {
            for Turn { column, side, .. } in settings.turns(number) {
                let run = sides[column].1.measure(settings, io).await;
                let (initiator, workload, queue_depth) = io;
                let run = run.with_context(|| {
                    let (initiator, workload) = (initiator.name(), workload.word());
                    format!("{side}: {initiator} {workload} at queue depth {queue_depth}")
                })?;
                runs.push((column, io, run));
            }
        }
        for (_, side) in sides {
            side.target.wake()?;
            side.target.stop().await?;
        }
    }
    Ok(points(settings, scenario, &runs))
}

/// What is measured in a round of a scenario.
fn ios(settings: &Settings, scenario: &Scenario) -> impl Iterator<Item = Io> {
    let can = |initiator: &&Initiator| !(settings.no_huge() && initiator.needs_hugepages());
    let initiators = scenario.initiators.iter().filter(can);
    initiators.flat_map(|initiator| {
        loads(settings).map(|(workload, queue_depth)| (*initiator, workload, queue_depth))
    })
}

/// A target that exports a volume, and does not run: the other one gets the core.
struct Exported {
    target: Target,
    attach: Attach,
}

impl Exported {
    async fn start(settings: &Settings, scenario: &Scenario, turn: Turn) -> Result<Self> {
        let mut target = Target::start(settings, turn).await?;
        let attach = target
            .export(settings, scenario.volume, scenario.export)
            .await?;
        let first = scenario
            .initiators
            .first()
            .context("a scenario needs an initiator")?;
        first
            .run(settings, &attach, WARM_UP)
            .await
            .context("warm-up")?;
        target.halt()?;
        Ok(Self { target, attach })
    }

    /// One run of one point.
    async fn measure(&self, settings: &Settings, io: Io) -> Result<Run> {
        let (initiator, workload, queue_depth) = io;
        let load = Load {
            workload,
            queue_depth,
            seconds: settings.line.seconds,
        };
        self.target.wake()?;
        let before = self.target.preemptions(settings)?;
        let measured = initiator.run(settings, &self.attach, load).await?;
        let preemptions = self.target.preemptions(settings)? - before;
        self.target.halt()?;
        Ok(Run {
            measured,
            preemptions,
        })
    }
}

fn loads(settings: &Settings) -> impl Iterator<Item = (Workload, u32)> {
    let depths: &[u32] = if settings.line.quick {
        &[32]
    } else {
        &[1, 32, 128]
    };
    [Workload::RandRead, Workload::RandWrite]
        .into_iter()
        .flat_map(move |workload| depths.iter().map(move |depth| (workload, *depth)))
}

fn points(settings: &Settings, scenario: &Scenario, runs: &[(usize, Io, Run)]) -> Vec<Point> {
    let mut points = Vec::new();
    for &initiator in scenario.initiators {
        for (workload, queue_depth) in loads(settings) {
            let of = |column| {
                let wanted = (column, (initiator, workload, queue_depth));
                let mine = runs
                    .iter()
                    .filter(|(column, io, _)| (*column, *io) == wanted);
                Runs::of(mine.map(|(_, _, run)| run.clone()).collect())
            };
            let (opi_spdk, spdk_tgt) = (of(0), of(1));
            if opi_spdk.runs.is_empty() {
                continue;
            }
            let ratio = opi_spdk.iops.as_ref().zip(spdk_tgt.iops.as_ref());
            points.push(Point {
                scenario: scenario.name,
                initiator,
                workload,
                queue_depth,
                ratio: ratio.and_then(|(ours, theirs)| Rounds::ratio(ours, theirs)),
                opi_spdk,
                spdk_tgt,
            });
        }
    }
    points
}

impl Runs {
    fn of(runs: Vec<Run>) -> Self {
        Self {
            iops: Rounds::of(runs.iter().map(|run| run.measured.iops).collect()),
            mean_us: Rounds::of(runs.iter().map(|run| run.measured.mean_us).collect()),
            runs,
        }
    }
}
