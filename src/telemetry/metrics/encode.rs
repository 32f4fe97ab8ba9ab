//! A reading in OpenMetrics' form. Names are in base units.

use std::borrow::Cow;
use std::fmt::{Error, Write};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use spdk::bdev::IoErrors;

use super::Metrics;
use super::latency::Histogram;
use super::reading::Reading;

/// The text of a reading, with what is counted as it happens.
pub(super) fn text(metrics: &Metrics, reading: Reading) -> Result<String, Error> {
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
    registry.register_collector(Box::new(reading));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Reading {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut out = Out(encoder);
        self.volumes(&mut out)?;
        self.subsystems(&mut out)?;
        self.reactors(&mut out)?;
        self.control(&mut out)?;
        self.memory(&mut out)?;
        self.process(&mut out)
    }
}

type Read<V> = fn(&spdk::bdev::Counters) -> V;

impl Reading {
    fn volumes(&self, out: &mut Out) -> Result<(), Error> {
        let volumes = || {
            self.volumes
                .iter()
                .map(|(name, of)| ([("volume", escape(name)), ("bdev", escape(&of.name))], of))
        };
        let counts: [(&str, &str, Read<u64>); 6] = [
            ("read_operations", "Reads of a volume", |of| of.read_ops),
            ("read_bytes", "Bytes read of a volume", |of| of.read_bytes),
            ("write_operations", "Writes to a volume", |of| of.write_ops),
            ("write_bytes", "Bytes written to a volume", |of| {
                of.write_bytes
            }),
            ("unmap_operations", "Unmaps of a volume", |of| of.unmap_ops),
            ("unmap_bytes", "Bytes unmapped of a volume", |of| {
                of.unmap_bytes
            }),
        ];
        for (name, help, value) in counts {
            let name = format!("opi_spdk_volume_{name}");
            let values = volumes().map(|(labels, of)| (labels, value(of)));
            out.counters(&name, help, values)?;
        }
        let errors = volumes().flat_map(|([volume, bdev], of)| {
            let IoErrors {
                read,
                write,
                flush,
                other,
            } = of.errors;
            let kinds = [
                ("read", read),
                ("write", write),
                ("flush", flush),
                ("other", other),
            ];
            kinds.map(|(io, number)| {
                let io = ("io", Cow::Borrowed(io));
                ([volume.clone(), bdev.clone(), io], number)
            })
        });
        out.counters(
            "opi_spdk_volume_io_errors",
            "I/O of a volume that its device failed, by what it was",
            errors,
        )?;
        let times: [(&str, &str, Read<Duration>); 3] = [
            ("read", "Sum of the times that reads took", |of| {
                of.read_time
            }),
            ("write", "Sum of the times that writes took", |of| {
                of.write_time
            }),
            ("unmap", "Sum of the times that unmaps took", |of| {
                of.unmap_time
            }),
        ];
        for (name, help, value) in times {
            let name = format!("opi_spdk_volume_{name}_seconds");
            let values = volumes().map(|(labels, of)| (labels, value(of).as_secs_f64()));
            out.counters(&name, help, values)?;
        }
        let latencies = volumes()
            .filter_map(|(labels, of)| Some((labels, Histogram::of(of.latencies.as_ref()?))));
        let family = (
            "opi_spdk_volume_latency_seconds",
            "Time that I/O of a volume took",
            MetricType::Histogram,
        );
        out.family(family, latencies)?;
        out.gauges(
            "opi_spdk_volume_size_bytes",
            "Size of a volume",
            volumes().map(|(labels, of)| (labels, of.size_bytes as i64)),
        )?;
        out.gauge(
            "opi_spdk_volumes_left_out",
            "Volumes beyond those that have metrics of their own",
            self.volumes_left_out,
        )
    }

    fn subsystems(&self, out: &mut Out) -> Result<(), Error> {
        let labels = || {
            self.subsystems.iter().map(|of| {
                (
                    [("subsystem", escape(&of.name)), ("nqn", escape(&of.nqn))],
                    of,
                )
            })
        };
        out.gauges(
            "opi_spdk_subsystem_hosts_connected",
            "Connections of hosts to an NVMe subsystem",
            labels().map(|(labels, of)| (labels, of.hosts as i64)),
        )?;
        out.gauges(
            "opi_spdk_subsystem_namespaces",
            "Namespaces of an NVMe subsystem",
            labels().map(|(labels, of)| (labels, of.namespaces as i64)),
        )?;
        out.gauges(
            "opi_spdk_objects",
            "Objects of the API, by kind and condition",
            self.objects.iter().map(|of| {
                let condition = Cow::Borrowed(of.condition);
                (
                    [("kind", escape(&of.kind)), ("condition", condition)],
                    of.number as i64,
                )
            }),
        )
    }

    fn reactors(&self, out: &mut Out) -> Result<(), Error> {
        let cores = || {
            self.reactors
                .iter()
                .map(|of| ([("core", Cow::from(of.core.to_string()))], of))
        };
        out.counters(
            "opi_spdk_reactor_busy_seconds",
            "Time of a reactor's turns that had work",
            cores().map(|(labels, of)| (labels, of.busy.as_secs_f64())),
        )?;
        out.counters(
            "opi_spdk_reactor_idle_seconds",
            "Time of a reactor's turns that had none",
            cores().map(|(labels, of)| (labels, of.idle.as_secs_f64())),
        )?;
        out.gauges(
            "opi_spdk_reactor_last_turn_seconds",
            "Time since a reactor ended its last turn",
            cores().map(|(labels, of)| (labels, of.last_turn.as_secs_f64())),
        )?;
        out.counters(
            "opi_spdk_reactor_stalls",
            "Times that a reactor did not turn for a second or more",
            cores().map(|(labels, of)| {
                (
                    labels,
                    self.stalls.get(&of.core).copied().unwrap_or_default(),
                )
            }),
        )
    }

    fn control(&self, out: &mut Out) -> Result<(), Error> {
        let (control, mailbox) = (&self.control, &self.mailbox);
        out.counter(
            "opi_spdk_control_steps",
            "Steps of configuration on the app thread's reactor",
            control.steps,
        )?;
        out.counter(
            "opi_spdk_control_busy_seconds",
            "Time that these steps took",
            control.busy.as_secs_f64(),
        )?;
        let longest = control.longest.as_secs_f64();
        out.gauge_of(
            "opi_spdk_control_longest_step_seconds",
            "The longest of these steps since start",
            longest,
        )?;
        out.gauge(
            "opi_spdk_mailbox_calls",
            "Configuration calls under way in the data path",
            mailbox.in_flight as u64,
        )?;
        out.gauge(
            "opi_spdk_mailbox_capacity",
            "Configuration calls that may be under way at once",
            mailbox.capacity as u64,
        )?;
        out.counter(
            "opi_spdk_mailbox_refused",
            "Configuration calls that were refused because too many were under way",
            mailbox.refused,
        )?;
        out.gauge(
            "opi_spdk_management_connections",
            "Connections of clients of gRPC and HTTP",
            self.connections,
        )?;
        out.counter(
            "opi_spdk_audit_lines_lost",
            "Lines that the audit log did not take",
            self.audit_lost,
        )?;
        out.gauge(
            "opi_spdk_scrape_complete",
            "Whether SPDK told its part of this reading in time",
            u64::from(self.complete),
        )?;
        out.gauge_of(
            "opi_spdk_scrape_seconds",
            "Time that this reading took",
            self.took.as_secs_f64(),
        )
    }

    fn memory(&self, out: &mut Out) -> Result<(), Error> {
        let waits = [("8KiB", self.waits.small), ("132KiB", self.waits.large)];
        out.counters(
            "opi_spdk_iobuf_waits",
            "I/O that waited for a buffer, by the size of buffers",
            waits
                .into_iter()
                .map(|(size, waits)| ([("size", Cow::from(size))], waits)),
        )?;
        let pools = || {
            self.hugepages
                .iter()
                .map(|pool| ([("page_bytes", Cow::from(pool.page.to_string()))], pool))
        };
        out.gauges(
            "opi_spdk_hugepages_bytes",
            "Memory in hugepages of the machine, by the size of pages",
            pools().map(|(labels, pool)| (labels, pool.bytes as i64)),
        )?;
        out.gauges(
            "opi_spdk_hugepages_free_bytes",
            "Memory in hugepages that nobody uses",
            pools().map(|(labels, pool)| (labels, pool.free_bytes as i64)),
        )
    }

    fn process(&self, out: &mut Out) -> Result<(), Error> {
        let process = &self.process;
        out.gauge(
            "process_resident_memory_bytes",
            "Resident memory, without hugepages",
            process.resident_bytes,
        )?;
        out.gauge(
            "process_open_fds",
            "Open file descriptors",
            process.open_files,
        )?;
        out.gauge_of(
            "process_start_time_seconds",
            "When the process started, in Unix time",
            process.started,
        )?;
        let version = Cow::from(env!("CARGO_PKG_VERSION"));
        let labels = [("version", version), ("spdk", escape(spdk::version()))];
        out.gauges(
            "opi_spdk_build_info",
            "Versions of the program and of SPDK",
            [(labels, 1_i64)],
        )
    }
}

type Labels<'a, const N: usize> = [(&'static str, Cow<'a, str>); N];

/// Writes families of metrics.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn family<'v, M: EncodeMetric, const N: usize>(
        &mut self,
        (name, help, metric_type): (&str, &str, MetricType),
        metrics: impl IntoIterator<Item = (Labels<'v, N>, M)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, metric_type)?;
        for (labels, metric) in metrics {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters<'v, V, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'v, N>, V)>,
    ) -> Result<(), Error>
    where
        ConstCounter<V>: EncodeMetric,
    {
        let values = values.into_iter();
        let counters = values.map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family((name, help, MetricType::Counter), counters)
    }

    fn gauges<'v, V, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'v, N>, V)>,
    ) -> Result<(), Error>
    where
        ConstGauge<V>: EncodeMetric,
    {
        let values = values.into_iter();
        let gauges = values.map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family((name, help, MetricType::Gauge), gauges)
    }

    fn counter<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        value: V,
    ) -> Result<(), Error> {
        let family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        self.gauge_of(name, help, i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn gauge_of<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        value: V,
    ) -> Result<(), Error> {
        let family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)
    }
}

/// The value of a label, which clients chose: the encoder writes it as it is.
fn escape(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    let mut escaped = String::with_capacity(value.len() + 8);
    for c in value.chars() {
        let written = match c {
            '\\' | '"' => write!(escaped, "\\{c}"),
            '\n' => escaped.write_str("\\n"),
            c => escaped.write_char(c),
        };
        // Writing to a String does not fail.
        let _ = written;
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_labels_cannot_end_them() {
        assert_eq!(escape("a"), "a");
        assert_eq!(escape("a\"}\n\\"), "a\\\"}\\n\\\\");
    }
}
