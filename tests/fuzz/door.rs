//! Shared by all fuzzers: cases generated from seeds, minimization of findings, replay of case files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::common::Options;
use super::draw::Draw;
use super::world::World;

/// A step of a case, serialized in the door's own format.
pub type Step = serde_json::Value;

/// Cases between two checks of the invariants: a check takes as long as many cases.
const CASES: u64 = 40;

/// Cases between two stops of the target, each in the middle of a case.
const LIFE: u64 = 2_000;

/// Time limit of a finding's minimization.
const REDUCTION: Duration = Duration::from_secs(180);

/// Runs of a flaky case before a step counts as unnecessary.
const TRIES: usize = 2;

/// A door: one of the program's untrusted interfaces.
#[async_trait::async_trait]
pub trait Door: Send + Sync {
    /// The door's name on the command line, and of its corpus directory.
    fn name(&self) -> &'static str;

    /// Options of the target.
    fn options(&self) -> Options {
        Options::default()
    }

    /// Generates the steps of a case.
    fn draw(&self, draw: &mut Draw) -> Vec<Step>;

    /// Creates the API objects that the cases rely on.
    async fn prepare(&self, world: &mut World);

    /// Runs a case and removes what the case created. Most answers are ignored: an error is a violation
    /// by the target, a panic a bug of the fuzzer.
    async fn run(&self, world: &mut World, steps: &[Step]) -> Result<(), String>;
}

/// Returns all doors.
pub fn all() -> Vec<Box<dyn Door>> {
    vec![
        Box::new(super::host::Host),
        Box::new(super::peer::PeerDoor),
        Box::new(super::vhost_user::VhostUser),
        Box::new(super::vfio_user::VfioUser),
        Box::new(super::tls::Tls),
    ]
}

/// Runs the corpus, then cases from `seed` on until `end`; returns the number of cases, or the finding.
pub async fn seeds(door: &dyn Door, seed: u64, end: Instant) -> Result<u64, String> {
    let mut world = World::new(door).await;
    for (file, steps) in corpus(door) {
        let done = door.run(&mut world, &steps).await;
        let looked = match done {
            Ok(()) => world.unharmed().await,
            Err(what) => Err(what),
        };
        looked.map_err(|what| format!("{}: {what}", file.display()))?;
    }
    let mut cases = 0;
    let mut stops = LIFE;
    while Instant::now() < end {
        let first = seed + cases;
        let mut done = Ok(());
        for n in first..first + CASES {
            let steps = door.draw(&mut Draw::new(n));
            done = door.run(&mut world, &steps).await;
            cases += 1;
            if done.is_err() || world.ended() || Instant::now() >= end {
                break;
            }
        }
        if done.is_ok() {
            done = world.unharmed().await;
        }
        if let Err(what) = done {
            let log = world.log_tail();
            world.discard();
            let last = seed + cases - 1;
            return Err(reduced(door, first..=last, &what, &log).await);
        }
        if cases >= stops {
            stops += LIFE;
            stop_amid(door, world, seed + cases).await?;
            world = World::new(door).await;
        }
    }
    stop_amid(door, world, seed + cases).await?;
    Ok(cases)
}

/// Stops the target in the middle of a case.
async fn stop_amid(door: &dyn Door, mut world: World, seed: u64) -> Result<(), String> {
    let mut draw = Draw::new(seed);
    let steps = door.draw(&mut draw);
    let moment = Duration::from_millis(draw.below(60) as u64);
    let signal = world.signal_in(moment);
    // The result is meaningless once the target stops.
    let _ = door.run(&mut world, &steps).await;
    signal.join().expect("the thread only sleeps and signals");
    world
        .stopped()
        .map_err(|what| format!("{what} (in the case of seed {seed}, after {moment:?})"))
}

/// Runs the case in a file.
pub async fn replay(door: &dyn Door, file: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let steps: Vec<Step> =
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    match harm(door, &steps).await {
        Some(what) => Err(what),
        None => Ok(1),
    }
}

/// Runs a case on a new target; returns the violation, if any.
async fn harm(door: &dyn Door, steps: &[Step]) -> Option<String> {
    let mut world = World::new(door).await;
    let mut done = door.run(&mut world, steps).await;
    if done.is_ok() {
        done = world.unharmed().await;
    }
    let outcome = match done {
        Ok(()) => world.stop().await,
        Err(what) => {
            world.discard();
            Err(what)
        }
    };
    outcome.err()
}

/// Finds the seed whose case reproduces the violation, removes unnecessary steps and writes the case to
/// a file.
async fn reduced(
    door: &dyn Door,
    seeds: std::ops::RangeInclusive<u64>,
    what: &str,
    log: &str,
) -> String {
    eprintln!("{}: {what}; minimizing the case", door.name());
    let end = Instant::now() + REDUCTION;
    let mut found = None;
    for seed in seeds.clone().rev() {
        if Instant::now() > end {
            break;
        }
        let steps = door.draw(&mut Draw::new(seed));
        if harm(door, &steps).await.is_some() {
            found = Some(steps);
            break;
        }
    }
    let Some(mut steps) = found else {
        // The violation needs more than one case: write all of them.
        let all: Vec<Step> = seeds
            .clone()
            .flat_map(|seed| door.draw(&mut Draw::new(seed)))
            .collect();
        let file = written(door, &all, *seeds.start());
        return format!(
            "{what} (not reproduced by a single case of seeds {seeds:?}; all of them are in {file})\n{log}"
        );
    };
    let mut at = 0;
    while at < steps.len() && Instant::now() < end {
        let mut fewer = steps.clone();
        fewer.remove(at);
        let mut fails = false;
        for _ in 0..TRIES {
            fails = fails || harm(door, &fewer).await.is_some();
        }
        if fails {
            steps = fewer;
        } else {
            at += 1;
        }
    }
    let file = written(door, &steps, *seeds.start());
    format!("{what} ({} steps, in {file})\n{log}", steps.len())
}

fn written(door: &dyn Door, steps: &[Step], seed: u64) -> String {
    let file = std::env::temp_dir().join(format!("opi-fuzz-{}-{seed}.json", door.name()));
    let text = serde_json::to_string_pretty(steps).expect("JSON");
    std::fs::write(&file, text).expect("the temporary directory is writable");
    file.display().to_string()
}

fn corpus(door: &dyn Door) -> Vec<(PathBuf, Vec<Step>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(door.name());
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let text = std::fs::read_to_string(&file).expect("a file of the corpus");
            let steps = serde_json::from_str(&text).expect("a case");
            (file, steps)
        })
        .collect()
}
