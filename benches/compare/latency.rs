//! Latencies of I/O over NVMe/TCP while something else goes on: configuration calls, scrapes, a namespace that comes
//! and goes, growth of the volume itself.
//!
//! The volume is a null volume: both targets can grow one in use. The targets' runs alternate. Calls to a server that
//! does nothing show what the machine itself adds: on two cores, clients and control threads share one with the
//! initiator, and whatever they do delays its I/O.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use serde::Serialize;
use serde_json::json;

use crate::attach::Attach;
use crate::client::Address;
use crate::cost::{self, RATE};
use crate::floor;
use crate::http::Http;
use crate::initiator::{Background, Measured};
use crate::jsonrpc::JsonRpc;
use crate::opi::Counters;
use crate::report::line;
use crate::scenario::{BLOCK_SIZE, Export, Load, NQN, SUBSYSTEM_ID, Volume, Workload};
use crate::settings::Settings;
use crate::stats::Rounds;
use crate::target::{Target, Turn};

/// Queue depths of the reads.
const DEPTHS: [u32; 2] = [1, 32];

/// Interval of scrapes, of namespaces and of growth.
const INTERVAL: Duration = Duration::from_millis(100);

/// Name of a null volume that is added as a namespace.
const EXTRA: &str = "extra";

/// Growth of the volume, in MiB.
const GROWTH_MIB: u64 = 1;

/// What goes on beside the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Beside {
    Nothing,
    /// [`RATE`] calls per second to the server that does nothing.
    FloorCalls,
    /// [`RATE`] calls per second to the target.
    Calls,
    /// Ten per second; SPDK's counters of all bdevs from spdk_tgt.
    Scrapes,
    /// A namespace is added and removed, ten times per second.
    Namespaces,
    /// The volume grows, ten times per second.
    Growth,
}

impl Beside {
    const ALL: [Self; 6] = [
        Self::Nothing,
        Self::FloorCalls,
        Self::Calls,
        Self::Scrapes,
        Self::Namespaces,
        Self::Growth,
    ];

    fn name(self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::FloorCalls => format!("{RATE} calls a second to a server that does nothing"),
            Self::Calls => format!("{RATE} calls a second"),
            Self::Scrapes => "10 scrapes a second".to_owned(),
            Self::Namespaces => "10 namespaces a second added and removed".to_owned(),
            Self::Growth => "10 resizes a second".to_owned(),
        }
    }

    /// Whether the target itself has something to do.
    pub fn disturbs_target(self) -> bool {
        !matches!(self, Self::Nothing | Self::FloorCalls)
    }
}

/// Latencies of one side, a value per round, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latencies {
    pub p99_us: Rounds,
    pub p999_us: Rounds,
    pub max_us: Rounds,
    pub iops: Rounds,
}

/// Both sides, at one depth and beside one thing.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub queue_depth: u32,
    pub beside: Beside,
    pub opi_spdk: Latencies,
    pub spdk_tgt: Latencies,
}

/// A column and a condition.
type Key = (usize, u32, Beside);

impl Latencies {
    fn of(runs: &[(Key, Measured)], key: Key) -> Option<Self> {
        let mine = || runs.iter().filter(|(of, _)| *of == key);
        let rounds = |of: fn(&Measured) -> Option<f64>| {
            let values: Option<Vec<_>> = mine().map(|(_, run)| of(run)).collect();
            Rounds::of(values?)
        };
        Some(Self {
            p99_us: rounds(|run| run.p99_us)?,
            p999_us: rounds(|run| run.p999_us)?,
            max_us: rounds(|run| run.max_us)?,
            iops: rounds(|run| Some(run.iops))?,
        })
    }
}

/// The factors of p99 and of p99.9 of one side to those of another, medians of the rounds.
pub fn factors(of: &Latencies, to: &Latencies) -> [f64; 2] {
    let median =
        |of: &Rounds, to: &Rounds| Rounds::ratio(of, to).map_or(f64::NAN, |ratio| ratio.median);
    [
        median(&of.p99_us, &to.p99_us),
        median(&of.p999_us, &to.p999_us),
    ]
}

/// The undisturbed point at the same depth.
pub fn undisturbed<'a>(points: &'a [Point], point: &Point) -> Option<&'a Point> {
    let wanted = (point.queue_depth, Beside::Nothing);
    points
        .iter()
        .find(|of| (of.queue_depth, of.beside) == wanted)
}

/// Formats a table.
pub fn table(points: &[Point], out: &mut String) {
    line(
        out,
        format_args!(
            "### Latency: 4 KiB random reads of a null volume over NVMe/TCP, p99 / p99.9 / longest in µs\n\n\
             | depth | meanwhile | opi-spdk | spdk_tgt | opi-spdk to spdk_tgt, p99 / p99.9 | opi-spdk to undisturbed | \
             spdk_tgt to undisturbed |\n\
             |---:|---|---:|---:|---:|---:|---:|"
        ),
    );
    for point in points {
        let Some(alone) = undisturbed(points, point) else {
            continue;
        };
        let Point {
            queue_depth,
            beside,
            opi_spdk,
            spdk_tgt,
        } = point;
        let all = |of: &Latencies| {
            let Latencies {
                p99_us,
                p999_us,
                max_us,
                ..
            } = of;
            let (p99, p999, max) = (p99_us.median, p999_us.median, max_us.median);
            format!("{p99:.0} / {p999:.0} / {max:.0}")
        };
        let pair = |[p99, p999]: [f64; 2]| format!("{p99:.2} / {p999:.2}");
        let _ = writeln!(
            out,
            "| {queue_depth} | {} | {} | {} | {} | {} | {} |",
            beside.name(),
            all(opi_spdk),
            all(spdk_tgt),
            pair(factors(opi_spdk, spdk_tgt)),
            pair(factors(opi_spdk, &alone.opi_spdk)),
            pair(factors(spdk_tgt, &alone.spdk_tgt)),
        );
    }
    line(out, format_args!(""));
}

pub async fn run(settings: &Settings) -> Result<Vec<Point>> {
    let mut runs = Vec::new();
    for round in 0..settings.line.rounds {
        eprintln!("latency: round {} of {}", round + 1, settings.line.rounds);
        let mut sides = Vec::new();
        for turn in settings.turns(round) {
            let side = Side::start(settings, turn).await;
            sides.push((turn.column, side.with_context(|| turn.side.to_string())?));
        }
        sides.sort_by_key(|(column, _)| *column);
        let (floor, port) = floor::start(settings).await?;
        let each = DEPTHS.into_iter();
        let each = each.flat_map(|depth| Beside::ALL.map(|beside| (depth, beside)));
        for (number, (depth, beside)) in (round..).zip(each) {
            for Turn { column, side, .. } in settings.turns(number) {
                let run = sides[column].1.measure(settings, depth, beside, port).await;
                let run = run.with_context(|| format!("{side}: depth {depth}, {beside:?}"))?;
                runs.push(((column, depth, beside), run));
            }
        }
        drop(floor);
        for (_, side) in sides {
            side.target.wake()?;
            side.target.stop().await?;
        }
    }
    let mut points = Vec::new();
    for queue_depth in DEPTHS {
        for beside in Beside::ALL {
            let of = |column| Latencies::of(&runs, (column, queue_depth, beside));
            points.push(Point {
                queue_depth,
                beside,
                opi_spdk: of(0).context("a run without percentiles")?,
                spdk_tgt: of(1).context("a run without percentiles")?,
            });
        }
    }
    Ok(points)
}

/// A target with an exported null volume, stopped (SIGSTOP) while the other one runs.
struct Side {
    target: Target,
    attach: Attach,
    /// Size of the volume, in MiB.
    mib: u64,
}

impl Side {
    async fn start(settings: &Settings, turn: Turn) -> Result<Self> {
        let mut target = Target::start(settings, turn, Counters::Unwanted).await?;
        let attach = target
            .export(settings, Volume::Null, Export::NvmeTcp)
            .await?;
        let mib = settings.line.volume_mib;
        let mut client = Client::connect(&target).await?;
        client.create_extra().await.context("another null volume")?;
        // Connections and caches are warm.
        Background::timed(settings, &attach, load(1), 1)
            .await?
            .finish(1)
            .await?;
        target.halt()?;
        Ok(Self {
            target,
            attach,
            mib,
        })
    }

    async fn measure(
        &mut self,
        settings: &Settings,
        depth: u32,
        beside: Beside,
        floor: u16,
    ) -> Result<Measured> {
        let seconds = settings.line.seconds;
        let window = Duration::from_secs(seconds.into());
        self.target.wake()?;
        let io = Background::timed(settings, &self.attach, load(depth), seconds).await?;
        match beside {
            Beside::Nothing => {}
            Beside::FloorCalls => {
                cost::calls(&Address::Grpc(floor), window).await?;
            }
            Beside::Calls => {
                cost::calls(&self.target.address(), window).await?;
            }
            Beside::Scrapes | Beside::Namespaces | Beside::Growth => {
                self.repeat(beside, window).await?;
            }
        }
        let measured = io.finish(seconds).await?;
        self.target.halt()?;
        Ok(measured)
    }

    /// Does it at each interval of the window.
    async fn repeat(&mut self, beside: Beside, window: Duration) -> Result<()> {
        let mut client = Client::connect(&self.target).await?;
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(INTERVAL);
        while begun.elapsed() + INTERVAL < window {
            ticks.tick().await;
            match beside {
                Beside::Namespaces => client.add_and_remove().await?,
                Beside::Growth => {
                    self.mib += GROWTH_MIB;
                    client.grow(self.mib).await?;
                }
                _ => client.scrape().await?,
            }
        }
        Ok(())
    }
}

fn load(queue_depth: u32) -> Load {
    Load::random(Workload::RandRead, queue_depth)
}

/// A connection for what goes on beside the I/O.
enum Client {
    Opi(Http),
    SpdkTgt(JsonRpc),
}

impl Client {
    async fn connect(target: &Target) -> Result<Self> {
        Ok(match target {
            Target::Opi(opi) => Self::Opi(Http::connect(opi.http_port).await?),
            Target::SpdkTgt(tgt) => Self::SpdkTgt(JsonRpc::connect(&tgt.socket).await?),
        })
    }

    async fn create_extra(&mut self) -> Result<()> {
        const BLOCKS: u64 = 2048;
        match self {
            Self::Opi(http) => {
                let path = format!("/v1/nullVolumes?null_volume_id={EXTRA}");
                let body = json!({"block_size": BLOCK_SIZE, "blocks_count": BLOCKS});
                http.call(Method::POST, &path, Some(body)).await?;
            }
            Self::SpdkTgt(rpc) => {
                let body = json!({"name": EXTRA, "num_blocks": BLOCKS, "block_size": BLOCK_SIZE});
                rpc.call("bdev_null_create", body).await?;
            }
        }
        Ok(())
    }

    async fn add_and_remove(&mut self) -> Result<()> {
        match self {
            Self::Opi(http) => {
                let all = format!("/v1/nvmeSubsystems/{SUBSYSTEM_ID}/nvmeNamespaces");
                let body = json!({"spec": {"volume_name_ref": format!("volumes/{EXTRA}")}});
                let path = format!("{all}?nvme_namespace_id={EXTRA}");
                http.call(Method::POST, &path, Some(body)).await?;
                http.call(Method::DELETE, &format!("{all}/{EXTRA}"), None)
                    .await?;
            }
            Self::SpdkTgt(rpc) => {
                let body = json!({"nqn": NQN, "namespace": {"bdev_name": EXTRA}});
                let nsid = rpc.call("nvmf_subsystem_add_ns", body).await?;
                let body = json!({"nqn": NQN, "nsid": nsid});
                rpc.call("nvmf_subsystem_remove_ns", body).await?;
            }
        }
        Ok(())
    }

    async fn grow(&mut self, mib: u64) -> Result<()> {
        match self {
            Self::Opi(http) => {
                let path = "/v1/nullVolumes/bench?update_mask=blocks_count";
                let body = json!({"blocks_count": (mib << 20) / BLOCK_SIZE});
                http.call(Method::PATCH, path, Some(body)).await?;
            }
            Self::SpdkTgt(rpc) => {
                let body = json!({"name": "bench", "new_size": mib});
                rpc.call("bdev_null_resize", body).await?;
            }
        }
        Ok(())
    }

    async fn scrape(&mut self) -> Result<()> {
        match self {
            Self::Opi(http) => {
                http.body(Method::GET, "/metrics", None).await?;
            }
            Self::SpdkTgt(rpc) => {
                rpc.call("bdev_get_iostat", serde_json::Value::Null).await?;
            }
        }
        Ok(())
    }
}
