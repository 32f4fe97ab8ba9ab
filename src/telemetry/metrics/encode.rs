//! Encodes a reading as text. Metrics are in base units.

use std::time::Duration;

use prometheus_client::registry::Registry;

use super::Metrics;
use super::out::{Kind, Labels, Out};
use super::reading::Reading;
use super::text::{Form, prometheus};
use crate::telemetry::traces::recipe;

/// Estimated bytes per volume, per volume with latencies, and for everything else.
const ROOM_VOLUME: usize = 1_400;
const ROOM_LATENCIES: usize = 3_200;
const ROOM: usize = 64 << 10;

/// Encodes a reading and the live counters.
pub(super) fn text(
    metrics: &Metrics,
    reading: &Reading,
    form: Form,
) -> Result<String, std::fmt::Error> {
    let latencies = reading
        .volumes
        .iter()
        .filter(|(_, of)| of.latencies.is_some());
    let room = ROOM + reading.volumes.len() * ROOM_VOLUME + latencies.count() * ROOM_LATENCIES;
    let mut out = Out::new(form, room);
    let mut registry = Registry::default();
    registry.register(
        "opi_spdk_rpc_duration_seconds",
        "Time from a call's arrival to its answer, by gRPC method and code",
        metrics.rpcs.clone(),
    );
    registry.register(
        "opi_spdk_tls_not_after_timestamp_seconds",
        "When the first of the certificates in a file of TLS ends, seconds since 1970",
        metrics.certificates(),
    );
    registry.register(
        "opi_spdk_tls_crl_next_update_timestamp_seconds",
        "When the first of the lists of revoked certificates is to be replaced by its next update, seconds since 1970",
        metrics.revocation_lists(),
    );
    let mut rpcs = String::new();
    prometheus_client::encoding::text::encode_registry(&mut rpcs, &registry)?;
    match form {
        Form::OpenMetrics => out.written(&rpcs),
        Form::Prometheus => out.written(&prometheus(&rpcs)),
    }
    reading.write_volumes(&mut out);
    reading.write_doors(&mut out);
    reading.write_objects(&mut out);
    reading.write_reactors(&mut out);
    reading.write_polls(&mut out);
    reading.write_control(&mut out);
    reading.write_store(&mut out);
    reading.write_memory(&mut out);
    reading.write_process(&mut out);
    Ok(out.end())
}

impl Reading {
    fn write_objects(&self, out: &mut Out) {
        let objects = self.objects.iter().map(|of| {
            let labels = [("kind", of.kind.as_str()), ("condition", of.condition)];
            (Labels::of(labels), of.number)
        });
        let objects: Vec<_> = objects.collect();
        out.gauges(
            "opi_spdk_objects",
            "Objects of the API, by kind and condition",
            objects.iter().map(|(labels, number)| (labels, *number)),
        );
        for (name, help, objects) in [
            (
                "opi_spdk_object_pending_seconds",
                "For how long an object cannot be made, and why: of the first 64",
                &self.waiting,
            ),
            (
                "opi_spdk_object_offline_seconds",
                "For how long the device of an object is gone or fails, and why: of the first 64",
                &self.out_of_order,
            ),
        ] {
            let objects = objects.iter().map(|of| {
                let labels = [
                    ("object", of.object.as_str()),
                    ("reason", of.reason.as_str()),
                ];
                (Labels::of(labels), of.since.elapsed().unwrap_or_default())
            });
            let objects: Vec<_> = objects.collect();
            out.gauges(
                name,
                help,
                objects.iter().map(|(labels, time)| (labels, *time)),
            );
        }
    }

    fn write_reactors(&self, out: &mut Out) {
        let cores: Vec<_> = self
            .reactors
            .iter()
            .map(|of| (Labels::of([("core", &of.core.to_string())]), of))
            .collect();
        let cores = || cores.iter().map(|(labels, of)| (labels, *of));
        out.counters(
            "opi_spdk_reactor_busy_seconds",
            "Time of a reactor's turns that had work",
            cores().map(|(labels, of)| (labels, of.busy)),
        );
        out.counters(
            "opi_spdk_reactor_idle_seconds",
            "Time of a reactor's turns that had none, asleep included",
            cores().map(|(labels, of)| (labels, of.idle)),
        );
        out.counters(
            "opi_spdk_reactor_asleep_seconds",
            "Time that a reactor without work has slept",
            cores().map(|(labels, of)| (labels, of.asleep)),
        );
        let operations = cores().filter_map(|(labels, of)| {
            let number = self.operations.get(&of.core)?;
            Some((labels, *number))
        });
        out.counters(
            "opi_spdk_reactor_nvme_operations",
            "I/O commands of hosts over NVMe-oF, vfio-user included, that a reactor has completed",
            operations,
        );
        out.gauges(
            "opi_spdk_reactor_last_turn_seconds",
            "Time since a reactor ended its last turn",
            cores().map(|(labels, of)| (labels, of.last_turn)),
        );
        let stalls = |core| self.stalls.get(&core).copied().unwrap_or_default();
        out.counters(
            "opi_spdk_reactor_stalls",
            "Times that a reactor did not turn for a second or more",
            cores().map(|(labels, of)| (labels, stalls(of.core))),
        );
    }

    /// Only where they are measured: a family without samples would promise them.
    fn write_polls(&self, out: &mut Out) {
        let name = "opi_spdk_reactor_poll_cpu_seconds";
        if self.polls.is_empty() {
            return;
        }
        out.family(
            name,
            "CPU time for which a poll of a thread has held a reactor",
            Kind::Histogram,
        );
        let bounds = spdk::POLL_BOUNDS
            .iter()
            .map(|of| of.as_secs_f64().to_string());
        let bounds: Vec<_> = bounds.chain(["+Inf".to_owned()]).collect();
        for of in &self.polls {
            let labels = Labels::of([("core", &of.core.to_string())]);
            out.sample(name, "_sum", &labels, of.total);
            let mut all = 0;
            for (bound, count) in bounds.iter().zip(of.counts) {
                all += count;
                out.bucket(name, &labels, bound, all);
            }
            out.sample(name, "_count", &labels, all);
        }
    }

    fn write_control(&self, out: &mut Out) {
        let (control, mailbox) = (&self.control, &self.mailbox);
        out.counter(
            "opi_spdk_control_steps",
            "Steps of configuration on the app thread's reactor",
            control.steps,
        );
        out.counter(
            "opi_spdk_control_busy_seconds",
            "Time that these steps took",
            control.busy,
        );
        out.gauge(
            "opi_spdk_control_longest_step_seconds",
            "The longest of these steps since start",
            control.longest,
        );
        let long = self.long_steps.iter();
        let long = long.map(|(name, time)| (Labels::of([("step", recipe(name))]), *time));
        // A function may have several recipes: the longest step counts.
        let mut by_step: Vec<(Labels, Duration)> = Vec::new();
        for (labels, time) in long {
            match by_step.iter_mut().find(|(of, _)| *of == labels) {
                Some((_, longest)) => *longest = time.max(*longest),
                None => by_step.push((labels, time)),
            }
        }
        out.gauges(
            "opi_spdk_control_long_step_seconds",
            "The longest of these steps by what ran, where it took more than 100 us",
            by_step.iter().map(|(labels, time)| (labels, *time)),
        );
        out.gauge(
            "opi_spdk_mailbox_calls",
            "Configuration calls under way in the data path",
            mailbox.in_flight,
        );
        out.gauge(
            "opi_spdk_mailbox_capacity",
            "Configuration calls that may be under way at once",
            mailbox.capacity,
        );
        out.counter(
            "opi_spdk_mailbox_refused",
            "Configuration calls that were refused because too many were under way",
            mailbox.refused,
        );
        out.counter(
            "opi_spdk_audit_lines_lost",
            "Lines that the audit log did not take",
            self.audit_lost,
        );
        if let Some(last) = self.audit_last {
            out.gauge(
                "opi_spdk_audit_last_line",
                "Number of the last line of the audit log",
                last,
            );
        }
        out.counter(
            "opi_spdk_log_lines_lost",
            "Lines of the log that stderr, or what reads it, did not take",
            self.log_lost,
        );
        out.counter(
            "opi_spdk_panics",
            "Calls, attempts and monitors that a panic of the server cut off",
            self.panics,
        );
        out.gauge(
            "opi_spdk_scrape_complete",
            "Whether SPDK told its part of this reading in time",
            u8::from(self.complete),
        );
        out.gauge(
            "opi_spdk_scrape_seconds",
            "Time that this reading took",
            self.took,
        );
    }

    fn write_store(&self, out: &mut Out) {
        let store = &self.store;
        out.counter(
            "opi_spdk_store_commits",
            "Changes of records that are durable",
            store.commits,
        );
        out.counter(
            "opi_spdk_store_syncs",
            "Syncs of the file of the records",
            store.syncs,
        );
        out.counter(
            "opi_spdk_store_sync_seconds",
            "Time that these syncs took",
            store.sync_time,
        );
        out.gauge(
            "opi_spdk_store_size_bytes",
            "Size of the file of the records",
            store.bytes,
        );
        let replay = self.replay.map(|took| (Labels::default(), took));
        out.gauges(
            "opi_spdk_store_replay_seconds",
            "Time from reading the records of the last run until each was tried",
            replay.iter().map(|(labels, took)| (labels, *took)),
        );
    }

    fn write_memory(&self, out: &mut Out) {
        let [small, large] = &self.iobuf;
        let pools = [("8KiB", small), ("132KiB", large)];
        let gets: Vec<_> = pools
            .iter()
            .flat_map(|(size, pool)| {
                let of = move |(module, gets): &(String, _)| {
                    (
                        Labels::of([("module", module.as_str()), ("size", size)]),
                        *gets,
                    )
                };
                pool.gets.iter().map(of)
            })
            .collect();
        let gets = || {
            gets.iter()
                .map(|(labels, gets): &(_, spdk::IobufGets)| (labels, gets))
        };
        out.counters(
            "opi_spdk_iobuf_waits",
            "I/O that waited for a buffer, by who asked and by the size of buffers",
            gets().map(|(labels, gets)| (labels, gets.waits)),
        );
        out.counters(
            "opi_spdk_iobuf_kept_gets",
            "Buffers for I/O that came from those which a thread keeps",
            gets().map(|(labels, gets)| (labels, gets.kept)),
        );
        out.counters(
            "opi_spdk_iobuf_pool_gets",
            "Batches of buffers for I/O that came from the pool which all threads share",
            gets().map(|(labels, gets)| (labels, gets.pool)),
        );
        let known = pools.iter().filter(|(_, pool)| pool.buffers > 0);
        let states: Vec<_> = known
            .flat_map(|(size, pool)| {
                let states = [
                    ("free", pool.free),
                    ("kept", pool.kept),
                    ("used", pool.used()),
                ];
                states
                    .map(|(state, number)| (Labels::of([("size", size), ("state", state)]), number))
            })
            .collect();
        out.gauges(
            "opi_spdk_iobuf_buffers",
            "Buffers for I/O: free in the pool, free and kept by a thread, in use",
            states.iter().map(|(labels, number)| (labels, *number)),
        );
        let memory = &self.memory;
        out.gauge(
            "opi_spdk_memory_bytes",
            "SPDK's memory, of which malloc volumes, connections and buffers are taken",
            memory.bytes,
        );
        out.gauge(
            "opi_spdk_memory_free_bytes",
            "SPDK's memory that nobody has",
            memory.free,
        );
        out.gauge(
            "opi_spdk_memory_largest_free_bytes",
            "The largest piece of SPDK's free memory: no malloc volume can be larger",
            memory.largest_free,
        );
        let pools: Vec<_> = self
            .hugepages
            .iter()
            .map(|pool| (Labels::of([("page_bytes", &pool.page.to_string())]), pool))
            .collect();
        out.gauges(
            "opi_spdk_hugepages_bytes",
            "Memory in hugepages of the machine, by the size of pages",
            pools.iter().map(|(labels, pool)| (labels, pool.bytes)),
        );
        out.gauges(
            "opi_spdk_hugepages_free_bytes",
            "Memory in hugepages that nobody uses",
            pools.iter().map(|(labels, pool)| (labels, pool.free_bytes)),
        );
    }

    fn write_process(&self, out: &mut Out) {
        let process = &self.process;
        out.gauge(
            "process_resident_memory_bytes",
            "Resident memory, without hugepages",
            process.resident_bytes,
        );
        out.gauge(
            "process_open_fds",
            "Open file descriptors",
            process.open_files,
        );
        out.gauge(
            "process_start_time_seconds",
            "When the process started, in Unix time",
            process.started,
        );
        let labels = Labels::of([
            ("version", env!("CARGO_PKG_VERSION")),
            ("spdk", spdk::version()),
        ]);
        out.gauges(
            "opi_spdk_build_info",
            "Versions of the program and of SPDK",
            [(&labels, 1_u8)],
        );
    }
}
