//! Metrics of volumes.

use std::time::Duration;

use spdk::bdev::Counters;

use super::latency::{self, Histogram};
use super::out::{Kind, Labels, Out};
use super::reading::Reading;

type Read<V> = fn(&Counters) -> V;

const COUNTS: [(&str, &str, Read<u64>); 7] = [
    (
        "opi_spdk_volume_read_operations",
        "Reads of a volume",
        |of| of.read_ops,
    ),
    (
        "opi_spdk_volume_read_bytes",
        "Bytes read of a volume",
        |of| of.read_bytes,
    ),
    (
        "opi_spdk_volume_write_operations",
        "Writes to a volume",
        |of| of.write_ops,
    ),
    (
        "opi_spdk_volume_write_bytes",
        "Bytes written to a volume",
        |of| of.write_bytes,
    ),
    (
        "opi_spdk_volume_unmap_operations",
        "Unmaps of a volume",
        |of| of.unmap_ops,
    ),
    (
        "opi_spdk_volume_unmap_bytes",
        "Bytes unmapped of a volume",
        |of| of.unmap_bytes,
    ),
    (
        "opi_spdk_volume_flush_operations",
        "Flushes of a volume",
        |of| of.flush_ops,
    ),
];

const TIMES: [(&str, &str, Read<Duration>); 4] = [
    (
        "opi_spdk_volume_read_seconds",
        "Sum of the times that reads took",
        |of| of.read_time,
    ),
    (
        "opi_spdk_volume_write_seconds",
        "Sum of the times that writes took",
        |of| of.write_time,
    ),
    (
        "opi_spdk_volume_unmap_seconds",
        "Sum of the times that unmaps took",
        |of| of.unmap_time,
    ),
    (
        "opi_spdk_volume_flush_seconds",
        "Sum of the times that flushes took",
        |of| of.flush_time,
    ),
];

impl Reading {
    pub(super) fn write_volumes(&self, out: &mut Out) {
        // Formatted once for about twenty samples.
        let labels: Vec<Labels> = self
            .volumes
            .iter()
            .map(|(name, of)| Labels::of([("volume", name), ("bdev", &of.name)]))
            .collect();
        let volumes = || labels.iter().zip(self.volumes.iter().map(|(_, of)| of));
        for (name, help, value) in COUNTS {
            out.counters(
                name,
                help,
                volumes().map(|(labels, of)| (labels, value(of))),
            );
        }
        let errors = "opi_spdk_volume_io_errors";
        let help = "I/O of a volume that its device failed, by what it was";
        out.family(errors, help, Kind::Counter);
        for (labels, of) in volumes() {
            let of = &of.errors;
            for (io, number) in [
                ("read", of.read),
                ("write", of.write),
                ("flush", of.flush),
                ("other", of.other),
            ] {
                out.sample_of(errors, "_total", labels, ("io", io), number);
            }
        }
        for (name, help, value) in TIMES {
            let values = volumes().map(|(labels, of)| (labels, value(of)));
            out.counters(name, help, values);
        }
        self.write_latencies(out, volumes());
        out.gauges(
            "opi_spdk_volume_size_bytes",
            "Size of a volume",
            volumes().map(|(labels, of)| (labels, of.size_bytes)),
        );
        out.gauge(
            "opi_spdk_volumes_left_out",
            "Volumes beyond those that have metrics of their own",
            self.volumes_left_out,
        );
    }

    fn write_latencies<'v>(
        &self,
        out: &mut Out,
        volumes: impl Iterator<Item = (&'v Labels, &'v Counters)>,
    ) {
        let name = "opi_spdk_volume_latency_seconds";
        out.family(name, "Time that I/O of a volume took", Kind::Histogram);
        let bounds = latency::bounds();
        for (labels, of) in volumes {
            let Some(latencies) = &of.latencies else {
                continue;
            };
            let histogram = Histogram::of(latencies);
            out.sample(name, "_sum", labels, histogram.sum());
            let mut all = 0;
            for (bound, count) in bounds.iter().zip(histogram.counts()) {
                all += count;
                out.bucket(name, labels, bound, all);
            }
            out.sample(name, "_count", labels, all);
        }
    }
}
