//! I/O through an exported volume, alternating between the targets.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::attach::Attach;
use crate::initiator::{Initiator, Measured};
use crate::jsonrpc::JsonRpc;
use crate::opi::Counters;
use crate::reactor::ReactorTime;
use crate::remote::Remote;
use crate::scenario::{Extent, Load, SCENARIOS, Scenario, Volume, Workload};
use crate::settings::Settings;
use crate::stats::Rounds;
use crate::target::{Target, Turn};

/// Writes the volume and warms caches and connections before measuring.
const WARM_UP: Load = Load::random(Workload::RandWrite, 32);

/// One point of the comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub scenario: &'static str,
    pub initiator: Initiator,
    #[serde(flatten)]
    pub load: Load,
    pub opi_spdk: Runs,
    pub spdk_tgt: Runs,
    /// Ratio of the IOPS of opi-spdk to those of spdk_tgt, per round.
    pub ratio: Option<Rounds>,
    /// Ratio of the reactor time per I/O of opi-spdk to that of spdk_tgt, per round.
    pub reactor_ratio: Option<Rounds>,
}

/// One side of a point, with a run per round.
#[derive(Debug, Clone, Serialize)]
pub struct Runs {
    pub iops: Option<Rounds>,
    pub mean_us: Option<Rounds>,
    /// Busy time of the reactor per I/O, in nanoseconds, by SPDK's counters.
    pub reactor_ns: Option<Rounds>,
    pub runs: Vec<Run>,
}

/// A scenario that was skipped or failed, with the reason.
#[derive(Debug, Clone, Serialize)]
pub struct Missing {
    pub scenario: String,
    pub reason: String,
    /// Whether it was expected to work.
    pub failed: bool,
}

/// Results of this part.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DataPath {
    pub points: Vec<Point>,
    pub missing: Vec<Missing>,
}

/// Result of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    #[serde(flatten)]
    pub measured: Measured,
    /// Preemptions of the reactor during the run.
    pub preemptions: u64,
    /// Busy time of the reactor per I/O, in nanoseconds.
    pub reactor_ns: f64,
}

/// The initiator and the load of a run.
type Io = (Initiator, Load);

pub async fn run(settings: &Settings) -> DataPath {
    let mut all = DataPath::default();
    let wanted = |scenario: &&Scenario| {
        let usual = settings.line.all || !scenario.only_all;
        settings.wants(scenario.name) && usual || settings.names(scenario.name)
    };
    for scenario in SCENARIOS.iter().filter(wanted) {
        let initiators = || scenario.initiators.iter();
        let by_any = initiators().any(|initiator| !initiator.needs_hugepages());
        if settings.no_huge() && (scenario.export.needs_hugepages() || !by_any) {
            all.leave_out(scenario.name, "it needs hugepages".to_owned(), false);
            continue;
        }
        if scenario.reactors > 1 && settings.cores.two.is_none() {
            let reason = "the second reactor needs a third core, or --second-core";
            all.leave_out(scenario.name, reason.to_owned(), false);
            continue;
        }
        if settings.no_huge() && initiators().any(|initiator| initiator.needs_hugepages()) {
            all.leave_out(
                &format!("{} by fio", scenario.name),
                "SPDK's plugin for fio needs hugepages".to_owned(),
                false,
            );
        }
        match with_remote(settings, scenario).await {
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

/// Runs the scenario, with a remote target if its volume is there.
async fn with_remote(settings: &Settings, scenario: &Scenario) -> Result<Vec<Point>> {
    let Volume::Remote { paths, .. } = scenario.volume else {
        return compare(settings, scenario).await;
    };
    let remote = Remote::start(settings).await?;
    let port = remote.port;
    let scenario = Scenario {
        volume: Volume::Remote { paths, port },
        ..*scenario
    };
    let points = compare(settings, &scenario).await?;
    remote.stop().await?;
    Ok(points)
}

/// Runs all rounds of one scenario. Both targets are up during a round, and their runs alternate, since the speed of a
/// shared machine varies over many seconds. Each round starts new targets, since the memory pages that a process gets
/// determine its speed for its whole lifetime.
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
                let (initiator, load) = io;
                let run = run.with_context(|| format!("{side}: {} {load:?}", initiator.name()))?;
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

/// The measurements of a scenario's round.
fn ios(settings: &Settings, scenario: &Scenario) -> impl Iterator<Item = Io> {
    let can = |initiator: &&Initiator| !(settings.no_huge() && initiator.needs_hugepages());
    let initiators = scenario.initiators.iter().filter(can);
    initiators.flat_map(|initiator| {
        let loads = scenario.loads(extent(settings)).into_iter();
        loads.map(|load| (*initiator, load))
    })
}

/// A target that exports a volume and is stopped (SIGSTOP), so that the other one has the core.
struct Exported {
    target: Target,
    attach: Attach,
}

impl Exported {
    async fn start(settings: &Settings, scenario: &Scenario, turn: Turn) -> Result<Self> {
        let cores = match (scenario.reactors, &settings.cores.two) {
            (2, Some(two)) => two,
            _ => &settings.cores.target,
        };
        let mut target = Target::start_on(settings, turn, Counters::Wanted, cores).await?;
        let attach = target
            .export(settings, scenario.volume, scenario.export)
            .await?;
        for number in 1..scenario.namespaces {
            let id = format!("small-{number}");
            target.add_small_namespace(&id).await?;
        }
        let first = scenario
            .initiators
            .first()
            .context("a scenario needs an initiator")?;
        first
            .run(settings, &attach, WARM_UP, 1)
            .await
            .context("warm-up")?;
        target.halt()?;
        Ok(Self { target, attach })
    }

    /// Runs one point once.
    async fn measure(&self, settings: &Settings, io: Io) -> Result<Run> {
        let (initiator, load) = io;
        let seconds = settings.line.seconds;
        self.target.wake()?;
        let mut rpc = JsonRpc::connect(self.target.rpc_socket()?).await?;
        let busy = ReactorTime::read(&mut rpc).await?;
        let before = self.target.preemptions(settings)?;
        let measured = initiator.run(settings, &self.attach, load, seconds).await?;
        let preemptions = self.target.preemptions(settings)? - before;
        let busy = ReactorTime::read(&mut rpc).await?.busy_ns_since(busy);
        self.target.halt()?;
        Ok(Run {
            reactor_ns: busy / (measured.iops * f64::from(seconds)),
            measured,
            preemptions,
        })
    }
}

fn extent(settings: &Settings) -> Extent {
    match (settings.line.quick, settings.line.all) {
        (true, _) => Extent::Quick,
        (_, true) => Extent::All,
        _ => Extent::Usual,
    }
}

fn points(settings: &Settings, scenario: &Scenario, runs: &[(usize, Io, Run)]) -> Vec<Point> {
    let mut points = Vec::new();
    for io in ios(settings, scenario) {
        let of = |column| {
            let mine = runs
                .iter()
                .filter(|(its, its_io, _)| (*its, *its_io) == (column, io));
            Runs::of(mine.map(|(_, _, run)| run.clone()).collect())
        };
        let (opi_spdk, spdk_tgt) = (of(0), of(1));
        let ratio =
            |of: fn(&Runs) -> Option<&Rounds>| Rounds::ratio(of(&opi_spdk)?, of(&spdk_tgt)?);
        points.push(Point {
            scenario: scenario.name,
            initiator: io.0,
            load: io.1,
            ratio: ratio(|runs| runs.iops.as_ref()),
            reactor_ratio: ratio(|runs| runs.reactor_ns.as_ref()),
            opi_spdk,
            spdk_tgt,
        });
    }
    points
}

impl Runs {
    fn of(runs: Vec<Run>) -> Self {
        Self {
            iops: Rounds::of(runs.iter().map(|run| run.measured.iops).collect()),
            mean_us: Rounds::of(runs.iter().map(|run| run.measured.mean_us).collect()),
            reactor_ns: Rounds::of(runs.iter().map(|run| run.reactor_ns).collect()),
            runs,
        }
    }
}
