//! What is shown of a server: rows of volumes, hosts, paths and reactors.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::Value as Json;

use super::super::get::{all_of, ask, name_of};
use super::super::kinds::{self, Verb};
use super::super::{Connection, Failure, hosts};
use super::metrics::{Scrape, quantile};
use super::table::{Column, Row, Value};
use crate::gateway::json_of;

/// Paths whose counters are read; the others are counted.
const PATHS: usize = 128;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Volumes,
    Hosts,
    Paths,
    Reactors,
}

impl View {
    pub(super) const ALL: [Self; 4] = [Self::Volumes, Self::Hosts, Self::Paths, Self::Reactors];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Volumes => "volumes",
            Self::Hosts => "hosts",
            Self::Paths => "paths",
            Self::Reactors => "reactors",
        }
    }

    pub(super) fn columns(self) -> &'static [Column] {
        const fn of(header: &'static str, width: u16) -> Column {
            Column { header, width }
        }
        const VOLUMES: &[Column] = &[
            of("VOLUME", 0),
            of("IOPS", 7),
            of("READ/s", 8),
            of("WRITE/s", 8),
            of("P50", 7),
            of("P99", 7),
            of("ERRORS", 7),
        ];
        const HOSTS: &[Column] = &[
            of("HOST", 0),
            of("SUBSYSTEM", 16),
            of("ID", 6),
            of("QUEUES", 7),
            of("CORES", 8),
            of("ADDRESS", 21),
        ];
        const PATHS: &[Column] = &[
            of("PATH", 0),
            of("IOPS", 7),
            of("READ/s", 8),
            of("WRITE/s", 8),
            of("STATE", 20),
        ];
        const REACTORS: &[Column] = &[
            of("CORE", 14),
            of("BUSY", 7),
            of("LAST TURN", 10),
            of("STALLS", 7),
            of("QUEUES", 7),
        ];
        match self {
            Self::Volumes => VOLUMES,
            Self::Hosts => HOSTS,
            Self::Paths => PATHS,
            Self::Reactors => REACTORS,
        }
    }
}

/// The I/O counters of paths, by their names.
pub(super) type Counters = HashMap<String, [f64; 3]>;

/// Rows of volumes.
pub(super) fn volumes(before: &Scrape, now: &Scrape) -> Vec<Row> {
    let rates = |kinds: &[&str], what: &str| {
        let mut sum: HashMap<&str, f64> = HashMap::new();
        for kind in kinds {
            let metric = format!("opi_spdk_volume_{kind}_{what}_total");
            for (volume, rate) in now.rates(before, &metric, "volume") {
                *sum.entry(volume).or_default() += rate;
            }
        }
        sum
    };
    let iops = rates(&["read", "write", "unmap"], "operations");
    let (read, written) = (rates(&["read"], "bytes"), rates(&["write"], "bytes"));
    let errors = now.by("opi_spdk_volume_io_errors_total", "volume");
    let latencies = now.grown(before, "opi_spdk_volume_latency_seconds_bucket", "volume");
    let names = now.of("opi_spdk_volume_size_bytes").iter();
    let names = names.map(|sample| sample.label("volume"));
    let row = |name: &str| {
        let latency = |q| latencies.get(name).and_then(|all| quantile(all, q));
        vec![
            Value::text(name),
            Value::of(iops.get(name).copied(), Value::Count),
            Value::of(read.get(name).copied(), Value::Bytes),
            Value::of(written.get(name).copied(), Value::Bytes),
            Value::of(latency(0.5), Value::Seconds),
            Value::of(latency(0.99), Value::Seconds),
            Value::of(errors.get(name).copied(), Value::Count),
        ]
    };
    names.map(row).collect()
}

/// Rows of reactors.
pub(super) fn reactors(before: &Scrape, now: &Scrape, queues: &HashMap<i32, usize>) -> Vec<Row> {
    let rates = |what: &str| {
        let metric = format!("opi_spdk_reactor_{what}_seconds_total");
        now.rates(before, &metric, "core")
    };
    let (busy, idle) = (rates("busy"), rates("idle"));
    let stalls = now.by("opi_spdk_reactor_stalls_total", "core");
    let turns = now.by("opi_spdk_reactor_last_turn_seconds", "core");
    let mut cores: Vec<&str> = turns.keys().copied().collect();
    cores.sort_unstable();
    let row = |core: &str| {
        let share = busy.get(core).zip(idle.get(core)).and_then(|(busy, idle)| {
            let all = busy + idle;
            (all > 0.0).then(|| busy / all)
        });
        let served = core.parse().ok().and_then(|core: i32| queues.get(&core));
        vec![
            Value::text(core),
            Value::of(share, Value::Share),
            Value::of(turns.get(core).copied(), Value::Seconds),
            Value::of(stalls.get(core).copied(), Value::Count),
            Value::Count(served.map_or(0.0, |number| *number as f64)),
        ]
    };
    cores.into_iter().map(row).collect()
}

/// How many queues of hosts each core serves.
pub(super) async fn queues(connection: &Connection) -> Result<HashMap<i32, usize>, Failure> {
    let mut found = HashMap::new();
    for queue in hosts::all(connection, "")
        .await?
        .iter()
        .flat_map(|host| &host.queues)
    {
        *found.entry(queue.core).or_default() += 1;
    }
    Ok(found)
}

/// Rows of hosts.
pub(super) async fn connected(connection: &Connection) -> Result<Vec<Row>, Failure> {
    let hosts = hosts::all(connection, "").await?;
    let rows = hosts.iter().map(|host| {
        let mut cores: Vec<i32> = host.queues.iter().map(|queue| queue.core).collect();
        cores.sort_unstable();
        cores.dedup();
        let cores: Vec<String> = cores.iter().map(i32::to_string).collect();
        let subsystem = host.subsystem.rsplit('/').next().unwrap_or_default();
        vec![
            Value::text(&host.host_nqn),
            Value::text(subsystem),
            Value::Count(host.controller_id.into()),
            Value::Count(host.queues.len() as f64),
            Value::text(&cores.join(",")),
            Value::text(&host.address),
        ]
    });
    Ok(rows.collect())
}

/// Rows of paths, and the counters for the next ones.
pub(super) async fn paths(
    connection: &Connection,
    before: Option<&(Instant, Counters)>,
) -> Result<(Vec<Row>, (Instant, Counters)), Failure> {
    let kind = kinds::find("nvmePaths")?;
    let (now, mut counters, mut rows) = (Instant::now(), Counters::new(), Vec::new());
    for (at, path) in all_of(connection, kind, "").await?.iter().enumerate() {
        let name = name_of(path);
        let (stats, state) = match at < PATHS {
            false => (None, "not read: too many".to_owned()),
            true => match ask(connection, kind, Verb::Stats, &name).await {
                Ok(answer) => (json_of(&answer).ok(), "works".to_owned()),
                Err(Failure::Refused { status, .. })
                    if status.code() != tonic::Code::Unavailable =>
                {
                    (None, status.message().to_owned())
                }
                Err(failure) => return Err(failure),
            },
        };
        let stats = stats.map(|stats| sums(&stats));
        let old = before.and_then(|(at, all)| Some((at, all.get(&name)?)));
        let rate = |of: usize| {
            let ((at, old), new) = (old?, stats?);
            let seconds = now.saturating_duration_since(*at).as_secs_f64();
            let grown = new.get(of)? - old.get(of)?;
            (seconds > 0.0 && grown >= 0.0).then(|| grown / seconds)
        };
        rows.push(vec![
            Value::text(&name),
            Value::of(rate(0), Value::Count),
            Value::of(rate(1), Value::Bytes),
            Value::of(rate(2), Value::Bytes),
            Value::text(&state),
        ]);
        if let Some(stats) = stats {
            counters.insert(name, stats);
        }
    }
    Ok((rows, (now, counters)))
}

/// Operations, bytes read and bytes written of an answer.
fn sums(stats: &Json) -> [f64; 3] {
    let of = |field: &str| {
        let value = stats.get("stats").unwrap_or(stats).get(field);
        value.map_or(0.0, |value| match value {
            Json::String(text) => text.parse().unwrap_or(0.0),
            other => other.as_f64().unwrap_or(0.0),
        })
    };
    let operations = of("readOpsCount") + of("writeOpsCount") + of("unmapOpsCount");
    [operations, of("readBytesCount"), of("writeBytesCount")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_volume_s_row_has_its_rates_and_a_reactor_s_its_load() {
        let text = |ops: u32, busy: f64| {
            let label = "{volume=\"volumes/a\",bdev=\"a\"}";
            format!(
                "opi_spdk_volume_read_operations_total{label} {ops}\n\
                 opi_spdk_volume_write_operations_total{label} {ops}\n\
                 opi_spdk_volume_read_bytes_total{label} {}\n\
                 opi_spdk_volume_size_bytes{label} 1\n\
                 opi_spdk_reactor_busy_seconds_total{{core=\"0\"}} {busy}\n\
                 opi_spdk_reactor_idle_seconds_total{{core=\"0\"}} {}\n\
                 opi_spdk_reactor_last_turn_seconds{{core=\"0\"}} 0.1\n",
                ops * 512,
                10.0 - busy,
            )
        };
        let begin = Instant::now();
        let before = Scrape::parse(&text(10, 1.0), begin);
        let later = text(30, 1.0).replace(
            "seconds_total{core=\"0\"} 1\n",
            "seconds_total{core=\"0\"} 2\n",
        );
        let later = later.replace(
            "idle_seconds_total{core=\"0\"} 9\n",
            "idle_seconds_total{core=\"0\"} 12\n",
        );
        let now = Scrape::parse(&later, begin + Duration::from_secs(2));
        let row = &volumes(&before, &now)[0];
        assert_eq!(
            row[..3],
            [
                Value::text("volumes/a"),
                Value::Count(20.0),
                Value::Bytes(5120.0)
            ]
        );
        assert_eq!(row[4], Value::Absent, "no latency is counted");
        let queues = HashMap::from([(0, 3)]);
        let row = &reactors(&before, &now, &queues)[0];
        assert_eq!(
            (&row[1], &row[4]),
            (&Value::Share(0.25), &Value::Count(3.0))
        );
    }
}
