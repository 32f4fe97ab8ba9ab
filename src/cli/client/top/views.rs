//! The views: rows of volumes, hosts, paths and reactors.

use std::collections::HashMap;
use std::time::Instant;

use super::super::get::{all_of, name_of};
use super::super::kinds;
use super::super::metrics::{Scrape, quantile};
use super::super::{Connection, Failure, hosts};
use super::table::{Column, Row, Value};

/// A view.
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
            of("IOPS", 7),
            of("SUBSYSTEM", 13),
            of("ID", 6),
            of("QUEUES", 7),
            of("CORES", 6),
            of("ADDRESS", 21),
        ];
        const PATHS: &[Column] = &[
            of("PATH", 0),
            of("IOPS", 7),
            of("READ/s", 8),
            of("WRITE/s", 8),
            of("LATENCY", 8),
            of("STATE", 12),
        ];
        const REACTORS: &[Column] = &[
            of("CORE", 14),
            of("BUSY", 7),
            of("IOPS", 7),
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

/// I/O counts of hosts, keyed by subsystem and controller ID, which identify a connection.
pub(super) type HostIo = HashMap<(String, i32), i64>;

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
    let iops = now.rates(before, "opi_spdk_reactor_nvme_operations_total", "core");
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
            Value::of(iops.get(core).copied(), Value::Count),
            Value::of(turns.get(core).copied(), Value::Seconds),
            Value::of(stalls.get(core).copied(), Value::Count),
            Value::Count(served.map_or(0.0, |number| *number as f64)),
        ]
    };
    cores.into_iter().map(row).collect()
}

/// The number of host queues on each core.
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

/// Rows of hosts, and the counters to compare the next reading with.
pub(super) async fn connected(
    connection: &Connection,
    before: Option<&(Instant, HostIo)>,
) -> Result<(Vec<Row>, (Instant, HostIo)), Failure> {
    let hosts = hosts::all(connection, "").await?;
    let (now, mut counters) = (Instant::now(), HostIo::new());
    let rows = hosts.iter().map(|host| {
        let mut cores: Vec<i32> = host.queues.iter().map(|queue| queue.core).collect();
        cores.sort_unstable();
        cores.dedup();
        let cores: Vec<String> = cores.iter().map(i32::to_string).collect();
        let subsystem = host.subsystem.rsplit('/').next().unwrap_or_default();
        let queues = host.queues.iter().map(|queue| queue.completed_io_count);
        let all: i64 = queues.fold(0, i64::saturating_add);
        let key = (host.subsystem.clone(), host.controller_id);
        let rate = before.and_then(|(at, old)| {
            let seconds = now.saturating_duration_since(*at).as_secs_f64();
            let grown = all.checked_sub(*old.get(&key)?)?;
            (seconds > 0.0 && grown >= 0).then(|| grown as f64 / seconds)
        });
        counters.insert(key, all);
        vec![
            Value::text(&host.host_nqn),
            Value::of(rate, Value::Count),
            Value::text(subsystem),
            Value::Count(host.controller_id.into()),
            Value::Count(host.queues.len() as f64),
            Value::text(&cores.join(",")),
            Value::text(&host.address),
        ]
    });
    let rows = rows.collect();
    Ok((rows, (now, counters)))
}

/// The names of all paths.
pub(super) async fn path_names(connection: &Connection) -> Result<Vec<String>, Failure> {
    let kind = kinds::find("nvmePaths")?;
    let paths = all_of(connection, kind, "").await?;
    Ok(paths.iter().map(name_of).collect())
}

/// Rows of paths: the API's, and those of connections that the server has in addition.
pub(super) fn paths(before: &Scrape, now: &Scrape, names: &[String]) -> Vec<Row> {
    let rates = |kinds: &[&str], what: &str| {
        let mut sum: HashMap<&str, f64> = HashMap::new();
        for kind in kinds {
            let metric = format!("opi_spdk_path_{kind}_{what}_total");
            for (path, rate) in now.rates(before, &metric, "path") {
                *sum.entry(path).or_default() += rate;
            }
        }
        sum
    };
    let all = ["read", "write", "unmap"];
    let (operations, seconds) = (rates(&all, "operations"), rates(&all, "seconds"));
    let (read, written) = (rates(&["read"], "bytes"), rates(&["write"], "bytes"));
    let connected = now.by("opi_spdk_path_connected", "path");
    let mut shown: Vec<&str> = names.iter().map(String::as_str).collect();
    shown.extend(connected.keys().copied());
    shown.sort_unstable();
    shown.dedup();
    let row = |path: &str| {
        let iops = operations.get(path).copied();
        let busy = seconds.get(path).copied();
        let latency = iops.zip(busy).filter(|(iops, _)| *iops > 0.0);
        let state = match connected.get(path) {
            None => "not attached",
            Some(works) if *works > 0.0 => "works",
            Some(_) => "has dropped",
        };
        vec![
            Value::text(path),
            Value::of(iops, Value::Count),
            Value::of(read.get(path).copied(), Value::Bytes),
            Value::of(written.get(path).copied(), Value::Bytes),
            Value::of(latency.map(|(iops, busy)| busy / iops), Value::Seconds),
            Value::text(state),
        ]
    };
    shown.into_iter().map(row).collect()
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
                 opi_spdk_reactor_nvme_operations_total{{core=\"0\"}} {}\n\
                 opi_spdk_reactor_last_turn_seconds{{core=\"0\"}} 0.1\n",
                ops * 512,
                10.0 - busy,
                ops * 3,
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
            (&row[1], &row[2], &row[5]),
            (&Value::Share(0.25), &Value::Count(30.0), &Value::Count(3.0))
        );
    }

    #[test]
    fn a_path_s_row_has_its_rates_its_latency_and_whether_it_works() {
        let text = |ops: u32, seconds: f64| {
            let label = "{path=\"p\",controller=\"c\"}";
            format!(
                "opi_spdk_path_read_operations_total{label} {ops}\n\
                 opi_spdk_path_read_bytes_total{label} {}\n\
                 opi_spdk_path_read_seconds_total{label} {seconds}\n\
                 opi_spdk_path_connected{label} 1\n\
                 opi_spdk_path_connected{{path=\"q\",controller=\"c\"}} 0\n",
                ops * 512
            )
        };
        let begin = Instant::now();
        let before = Scrape::parse(&text(10, 1.0), begin);
        let now = Scrape::parse(&text(30, 1.5), begin + Duration::from_secs(2));
        let rows = paths(&before, &now, &["p".to_owned(), "r".to_owned()]);
        let works = [
            Value::text("p"),
            Value::Count(10.0),
            Value::Bytes(5120.0),
            Value::Absent,
            Value::Seconds(0.025),
            Value::text("works"),
        ];
        assert_eq!(rows[0], works);
        let states: Vec<_> = rows.iter().map(|row| &row[5]).collect();
        let dropped = (&Value::text("has dropped"), &Value::text("not attached"));
        assert_eq!((states[1], states[2]), dropped);
    }
}
