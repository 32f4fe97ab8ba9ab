//! The project's performance goals, and whether this run has met them.

use serde::Serialize;

use crate::client::{Subject, Verb};
use crate::control::{Control, Load};
use crate::cost::Cost;
use crate::creates::{self, Creates};
use crate::data_path::DataPath;
use crate::idle::Idle;
use crate::latency;
use crate::naps::{self, Naps};
use crate::scale::Scale;
use crate::sight::Sight;
use crate::slices::{self, Slices};
use crate::stats::Rounds;
use crate::target::Side;

/// Minimum ratio of IOPS to those of spdk_tgt, at every point: 1, but for what spdk_tgt has beside itself.
pub const DATA_RATIO: f64 = 0.98;

/// Minimum medians of these ratios, over all points and over those of plain NVMe/TCP.
const DATA_MEDIAN: f64 = 1.1;
const TCP_MEDIAN: f64 = 1.15;

/// Maximum p50 of Get, as a multiple of the floor's.
const GET_FLOORS: f64 = 1.2;

/// Maximum p50 of Create: a multiple of the floor's, plus microseconds.
const CREATE_FLOORS: f64 = 1.5;
const CREATE_EXTRA_US: f64 = 100.0;

/// Maximum p50 of a call over HTTP, as a multiple of gRPC's.
const HTTP_TO_GRPC: f64 = 1.5;

/// Minimum speedup over JSON-RPC, at p50 and at p99.
const FASTER: f64 = 20.0;

/// Maximum fraction of a reactor's time for 1,000 calls per second.
const SHARE: f64 = 0.02;

/// Maximum time of one control step, in microseconds.
const HOLD_US: f64 = 100.0;

/// One goal.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub target: String,
    pub reached: String,
    pub met: bool,
}

/// Minimum ratio of creates per second among many objects to those among few.
const CREATES_RATIO: f64 = 0.9;

/// How much longer than an fsync a Create of one client may take at p50, in microseconds, and the minimum ratio of the
/// creates per second of many clients to the fsyncs per second.
const DURABLE_EXTRA_US: f64 = 100.0;
const CREATES_TO_FSYNCS: f64 = 5.0;

/// Maximum time of a start with all objects after SPDK is up, in milliseconds.
const RESTART_MS: f64 = 3_000.0;

/// Maximum time of a scrape of all volumes, in milliseconds.
const SCRAPE_MS: f64 = 100.0;

/// See [`everything`] and [`switched`].
const SEEN_IOPS: f64 = 0.99;
const SEEN_REACTOR: f64 = 1.01;
const SEEN_CREATE_US: f64 = 5.0;
const IDLE_PERCENT: f64 = 0.5;

/// Maximum p99 and p99.9 while the target is configured, as multiples of the undisturbed ones.
const DISTURBED: f64 = 1.1;

/// What was measured of observability.
pub struct Seen<'a> {
    pub sight: Option<&'a Sight>,
    pub creates: &'a [Creates],
    pub slices: &'a [Slices],
    pub idle: &'a [Idle],
}

/// All goals that this run measures.
pub fn all(
    data: &DataPath,
    control: &Control,
    cost: &[Cost],
    scale: Option<&Scale>,
    seen: &Seen<'_>,
    latency: &[latency::Point],
    naps: &[Naps],
) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    verdicts.extend(data_path(data));
    verdicts.extend(get(control));
    verdicts.extend(create(control));
    verdicts.extend(
        [Verb::Get, Verb::Create]
            .into_iter()
            .filter_map(|verb| over_http(control, verb)),
    );
    for load in [Load::Idle, Load::Saturated] {
        for clients in [1, 16] {
            verdicts.extend(faster(control, clients, load));
        }
    }
    verdicts.extend(reactor(cost));
    verdicts.extend(scale.into_iter().flat_map(many_objects));
    verdicts.extend(seen.sight.into_iter().flat_map(everything));
    let everything_on = |of: &&Creates| of.with == creates::ALL;
    verdicts.extend(seen.creates.iter().find(everything_on).map(seen_create));
    let of_exports = || seen.slices.iter().filter(|of| of.over != slices::BDEVPERF);
    verdicts.extend(of_exports().map(switched));
    let shortest = of_exports().map(|of| of.reactor_ns_without);
    let shortest = shortest.min_by(f64::total_cmp);
    let alone = seen.slices.iter().find(|of| of.over == slices::BDEVPERF);
    verdicts.extend(alone.zip(shortest).map(|(of, io_ns)| latencies(of, io_ns)));
    verdicts.extend(seen.idle.last().map(without_calls));
    verdicts.extend(disturbed(latency));
    verdicts.extend(naps::verdicts(naps));
    verdicts
}

/// The goal for latencies while the target has something else to do.
fn disturbed(points: &[latency::Point]) -> Option<Verdict> {
    let disturbed = points.iter().filter(|point| point.beside.disturbs_target());
    let factors = disturbed.filter_map(|point| {
        let alone = latency::undisturbed(points, point)?;
        Some(latency::factors(&point.opi_spdk, &alone.opi_spdk))
    });
    let factors: Vec<_> = factors.flatten().collect();
    let most = factors.iter().copied().max_by(f64::total_cmp)?;
    let good = factors
        .iter()
        .filter(|factor| **factor <= DISTURBED)
        .count();
    Some(Verdict {
        target: format!(
            "p99 and p99.9 beside calls, scrapes and changes: at most {DISTURBED} times the undisturbed"
        ),
        reached: format!("{good} of {}, most {most:.2}", factors.len()),
        met: good == factors.len(),
    })
}

/// Goals for all observability enabled, compared with none.
fn everything(sight: &Sight) -> [Verdict; 2] {
    let (iops, reactor) = (sight.iops_ratio.median, sight.reactor_ratio.median);
    [
        Verdict {
            target: format!("everything seen: IOPS at least {SEEN_IOPS} of those without"),
            reached: format!("{iops:.4}"),
            met: iops >= SEEN_IOPS,
        },
        Verdict {
            target: format!(
                "everything seen: reactor time for an I/O at most {SEEN_REACTOR} of that without"
            ),
            reached: format!("{reactor:.4}"),
            met: reactor <= SEEN_REACTOR,
        },
    ]
}

fn seen_create(creates: &Creates) -> Verdict {
    let extra = creates.extra_us.median;
    Verdict {
        target: format!("everything seen: a Create at p50 at most {SEEN_CREATE_US} µs longer"),
        reached: format!("{extra:+.1} µs"),
        met: extra <= SEEN_CREATE_US,
    }
}

/// The goal for a feature that is switched during a run of I/O: met if it is within two standard errors, too.
fn switched(slices: &Slices) -> Verdict {
    let (ratio, error) = (slices.reactor.median, slices.reactor_error);
    Verdict {
        target: format!(
            "{} over {}: reactor time for an I/O at most {SEEN_REACTOR} of that without",
            slices.what, slices.over
        ),
        reached: format!("{ratio:.4} ± {error:.4}"),
        met: 2.0_f64.mul_add(error, ratio) <= SEEN_REACTOR,
    }
}

/// The goal for latencies, by their cost in bdevperf and the shortest time of an I/O over an export.
fn latencies(alone: &Slices, io_ns: f64) -> Verdict {
    let (more, error) = (alone.more_ns(), alone.error_ns());
    Verdict {
        target: format!(
            "{}: their time in bdevperf at most {:.0} % of the {io_ns:.0} ns of an I/O over an export",
            alone.what,
            (SEEN_REACTOR - 1.0) * 100.0
        ),
        reached: format!("{more:.1} ± {error:.1} ns"),
        met: 2.0_f64.mul_add(error, more) <= (SEEN_REACTOR - 1.0) * io_ns,
    }
}

fn without_calls(idle: &Idle) -> Verdict {
    let percent = idle.percent.median;
    Verdict {
        target: format!(
            "control threads without calls, everything on: at most {IDLE_PERCENT} % of a core"
        ),
        reached: format!("{percent:.2} %"),
        met: percent <= IDLE_PERCENT,
    }
}

fn many_objects(scale: &Scale) -> [Verdict; 5] {
    let Scale {
        few, many, durable, ..
    } = scale;
    let extra = durable.extra_us();
    let shared = scale.creates_among_few.median / durable.fsyncs_per_second();
    let (ratio, ready) = (scale.creates_ratio.median, scale.ready_ms.median);
    let scrape_ms = scale.scrape.p50_us / 1e3;
    [
        Verdict {
            target: format!("a Create at p50: an fsync and {DURABLE_EXTRA_US} µs at most"),
            reached: format!("an fsync and {extra:.0} µs"),
            met: extra <= DURABLE_EXTRA_US,
        },
        Verdict {
            target: format!(
                "creates a second of many clients at least {CREATES_TO_FSYNCS} times the fsyncs a second"
            ),
            reached: format!("{shared:.2} times"),
            met: shared >= CREATES_TO_FSYNCS,
        },
        Verdict {
            target: format!(
                "creates a second among {many} at least {CREATES_RATIO} of those among {few}"
            ),
            reached: format!("{ratio:.3}"),
            met: ratio >= CREATES_RATIO,
        },
        Verdict {
            target: format!(
                "a start with {} objects: ready {RESTART_MS} ms after SPDK is up",
                scale.restored
            ),
            reached: format!("{ready:.0} ms"),
            met: ready <= RESTART_MS,
        },
        Verdict {
            target: format!("a scrape within {SCRAPE_MS} ms"),
            reached: format!("{scrape_ms:.0} ms"),
            met: scrape_ms <= SCRAPE_MS,
        },
    ]
}

/// The points at a fixed rate have no ratio of IOPS that tells anything.
fn data_path(data: &DataPath) -> Vec<Verdict> {
    let free = data.points.iter().filter(|point| point.load.rate.is_none());
    let ratios: Vec<_> = free
        .filter_map(|point| Some((point.scenario, point.ratio.as_ref()?.median)))
        .collect();
    let Some(least) = ratios.iter().map(|of| of.1).min_by(f64::total_cmp) else {
        return Vec::new();
    };
    let good = ratios.iter().filter(|of| of.1 >= DATA_RATIO).count();
    let every = Verdict {
        target: format!("data path: at least {DATA_RATIO} of spdk_tgt at every point"),
        reached: format!("{good} of {} points, least {least:.3}", ratios.len()),
        met: good == ratios.len(),
    };
    let all = ratios.iter().map(|of| of.1).collect();
    let tcp = ratios.iter().filter(|of| of.0 == "nvme-tcp");
    let tcp = tcp.map(|of| of.1).collect();
    let medians = [
        ("all points", all, DATA_MEDIAN),
        ("NVMe/TCP", tcp, TCP_MEDIAN),
    ];
    let medians = medians
        .into_iter()
        .filter_map(|(of, ratios, goal)| Some((of, Rounds::of(ratios)?.median, goal)));
    let medians = medians.map(|(of, median, goal)| Verdict {
        target: format!("data path: at least {goal} of spdk_tgt in the median over {of}"),
        reached: format!("{median:.3}"),
        met: median >= goal,
    });
    std::iter::once(every).chain(medians).collect()
}

/// The p50 with one client on an idle machine.
fn p50_us(control: &Control, subject: Subject, verb: Verb) -> Option<f64> {
    Some(control.find(subject, verb, 1, Load::Idle)?.latency.p50_us)
}

fn beside_floor(control: &Control, verb: Verb) -> Option<(f64, f64)> {
    Some((
        p50_us(control, Subject::Opi, verb)?,
        p50_us(control, Subject::Floor, verb)?,
    ))
}

fn over_http(control: &Control, verb: Verb) -> Option<Verdict> {
    let (grpc, http) = (
        p50_us(control, Subject::Opi, verb)?,
        p50_us(control, Subject::OpiHttp, verb)?,
    );
    Some(Verdict {
        target: format!("{verb:?} over HTTP: p50 within {HTTP_TO_GRPC} times gRPC, idle"),
        reached: format!("{:.2} ({http:.0} µs to {grpc:.0} µs)", http / grpc),
        met: http <= HTTP_TO_GRPC * grpc,
    })
}

fn get(control: &Control) -> Option<Verdict> {
    let (ours, floor) = beside_floor(control, Verb::Get)?;
    Some(Verdict {
        target: format!("Get: p50 within {GET_FLOORS} times the floor, idle"),
        reached: format!("{:.2} ({ours:.0} µs to {floor:.0} µs)", ours / floor),
        met: ours <= GET_FLOORS * floor,
    })
}

fn create(control: &Control) -> Option<Verdict> {
    let (ours, floor) = beside_floor(control, Verb::Create)?;
    let bound = CREATE_FLOORS * floor + CREATE_EXTRA_US;
    Some(Verdict {
        target: format!(
            "Create: p50 within {CREATE_FLOORS} times the floor plus {CREATE_EXTRA_US} µs, idle"
        ),
        reached: format!("{ours:.0} µs, bound {bound:.0} µs"),
        met: ours <= bound,
    })
}

fn faster(control: &Control, clients: usize, load: Load) -> Option<Verdict> {
    let (factor, which) = least_factor(control, Subject::Opi, clients, load)?;
    let (floor, _) = least_factor(control, Subject::Floor, clients, load)?;
    let state = match load {
        Load::Idle => "idle",
        Load::Saturated => "saturated",
    };
    Some(Verdict {
        target: format!(
            "{FASTER} times faster than JSON-RPC at p50 and p99: {clients} client(s), {state} data path"
        ),
        reached: format!("least {factor:.1} ({which}); the floor reaches {floor:.1}"),
        met: factor >= FASTER,
    })
}

/// The smallest speedup over JSON-RPC of all calls, and the call.
fn least_factor(
    control: &Control,
    subject: Subject,
    clients: usize,
    load: Load,
) -> Option<(f64, String)> {
    let mut least = (f64::INFINITY, String::new());
    for verb in Verb::ALL {
        let one = &control.find(subject, verb, clients, load)?.latency;
        let json = &control.find(Subject::SpdkTgt, verb, clients, load)?.latency;
        for (name, factor) in [
            ("p50", json.p50_us / one.p50_us),
            ("p99", json.p99_us / one.p99_us),
        ] {
            if factor < least.0 {
                least = (factor, format!("{verb:?} at {name}"));
            }
        }
    }
    Some(least)
}

fn reactor(cost: &[Cost]) -> Vec<Verdict> {
    let ours = || cost.iter().filter(|cost| cost.side == Side::Opi);
    let most = |value: fn(&Cost) -> f64| ours().map(value).max_by(f64::total_cmp);
    let (Some(share), Some(longest)) = (most(Cost::share), most(Cost::longest_us)) else {
        return Vec::new();
    };
    vec![
        Verdict {
            target: format!(
                "1,000 calls a second: less than {} % of a reactor",
                SHARE * 100.0
            ),
            reached: format!("{:.2} %", share * 100.0),
            met: share < SHARE,
        },
        Verdict {
            target: format!("no control step holds a reactor for more than {HOLD_US} µs"),
            reached: format!("longest {longest:.0} µs"),
            met: longest <= HOLD_US,
        },
    ]
}
