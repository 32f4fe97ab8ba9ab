//! Checks hugepages per NUMA node, ordinary memory, and the control groups' limits of both.

use super::Level::{Error, Warning};
use super::{Report, Running};
use crate::config::Config;
use crate::machine::cgroup::BESIDE_MIB;
use crate::machine::hugepages::{self, Pool};
use crate::machine::{Machine, cgroup, cpus};

pub(super) fn examine(
    machine: &Machine,
    config: &Config,
    running: Option<&Running>,
    report: &mut Report,
) {
    let needed = u64::from(config.mem_mib);
    if running.is_some() {
        // The running process has its memory; the free rest says nothing about a restart.
        return mappings(machine, config, report);
    }
    match config.no_huge {
        true => ordinary(machine, needed, report),
        false => huge(machine, config, needed, report),
    }
    let beside = if config.no_huge {
        needed + BESIDE_MIB
    } else {
        BESIDE_MIB
    };
    match cgroup::memory(machine) {
        Some(limit) if limit.left_mib() < beside => report.add(
            Error,
            "cgroup",
            format!(
                "{} leaves {} MiB, and {beside} MiB are needed",
                limit.file.display(),
                limit.left_mib()
            ),
            "past the limit the kernel kills the process, and every host loses its disks",
            "raise the limit (MemoryMax= of the unit, --memory of the container, resources.limits.memory of the pod)",
        ),
        Some(limit) => report.ok(
            "cgroup",
            format!("{} leaves {} MiB", limit.file.display(), limit.left_mib()),
        ),
        None => report.ok("cgroup", "memory has no limit"),
    }
    mappings(machine, config, report);
}

fn mappings(machine: &Machine, config: &Config, report: &mut Report) {
    let needed = u64::from(config.mem_mib);
    let mappings = machine.number("/proc/sys/vm/max_map_count");
    let used = if config.no_huge {
        1024
    } else {
        needed / 2 + 1024
    };
    if let Some(most) = mappings.filter(|most| *most < used) {
        report.add(
            Error,
            "mappings",
            format!("vm.max_map_count is {most}, and up to {used} are needed"),
            "SPDK maps each hugepage apart, and cannot start without enough mappings",
            format!("sysctl -w vm.max_map_count={}", used * 2),
        );
    }
}

fn ordinary(machine: &Machine, needed: u64, report: &mut Report) {
    let free = machine
        .field_number("/proc/meminfo", "MemAvailable")
        .unwrap_or(0)
        / 1024;
    if free < needed + BESIDE_MIB {
        report.add(
            Error,
            "memory",
            format!("{free} MiB are available, and {needed} MiB are asked for"),
            "SPDK reserves all of it at its start",
            "lower --mem-mib, or end what uses the memory",
        );
    }
    report.add(
        Warning,
        "hugepages",
        "none are used (no-huge)",
        "without them there is no vfio-user, vhost-user or PCIe, and address translation costs more",
        "opi-spdk setup --hugepages 1024, and leave out --no-huge",
    );
}

fn huge(machine: &Machine, config: &Config, needed: u64, report: &mut Report) {
    let pools = hugepages::pools(machine);
    let mounted = hugepages::mounted(machine);
    let usable: Vec<&Pool> = pools
        .iter()
        .filter(|pool| mounted.contains(&pool.kib))
        .collect();
    let free: u64 = usable.iter().map(|pool| pool.free_mib()).sum();
    let fix = format!("opi-spdk setup --hugepages {}", needed.div_ceil(2));
    if pools.is_empty() {
        report.add(
            Error,
            "hugepages",
            "the kernel has none (no /sys/devices/system/node/*/hugepages)",
            "SPDK's memory is hugepages, which devices and virtual machines share",
            "use --no-huge (NVMe/TCP only), or a kernel with hugetlbfs",
        );
        return;
    }
    if free < needed {
        report.add(
            Error,
            "hugepages",
            format!(
                "{free} MiB are free where hugetlbfs is mounted, and {needed} MiB are asked for"
            ),
            "SPDK reserves all of its memory at its start",
            &fix,
        );
    } else {
        let nodes: Vec<_> = usable
            .iter()
            .filter(|pool| pool.free > 0)
            .map(|pool| {
                format!(
                    "node {}: {} of {}",
                    pool.node,
                    pool.free,
                    hugepages::size(pool.kib)
                )
            })
            .collect();
        report.ok(
            "hugepages",
            format!("{free} MiB are free ({})", nodes.join(", ")),
        );
    }
    for pool in pools.iter().filter(|pool| pool.free > 0) {
        if !mounted.contains(&pool.kib) {
            report.add(
                Warning,
                "hugepages",
                format!(
                    "no hugetlbfs for pages of {} is mounted",
                    hugepages::size(pool.kib)
                ),
                "SPDK maps files there; pages of that size stay unused",
                format!(
                    "opi-spdk setup --hugepages {} --page-size {}",
                    pool.total,
                    hugepages::size(pool.kib)
                ),
            );
        }
    }
    for node in cpus::nodes_of(machine, &config.cores) {
        let on_node = usable.iter().filter(|pool| pool.node == node);
        if free >= needed && on_node.map(|pool| pool.free).sum::<u64>() == 0 {
            report.add(
                Warning,
                "NUMA",
                format!("node {node} has reactors and no free hugepages"),
                "its reactors would use memory of another node, at a higher latency",
                format!(
                    "opi-spdk setup --hugepages node{node}={}",
                    needed.div_ceil(2)
                ),
            );
        }
    }
    let limit = cgroup::hugetlb_of_all(machine, &mounted);
    if let Some(limit) = limit.filter(|limit| limit.left_mib() < needed) {
        report.add(
            Error,
            "cgroup",
            format!(
                "{} leaves {} MiB of hugepages, and {needed} MiB are asked for",
                limit.file.display(),
                limit.left_mib()
            ),
            "past the limit a hugepage is no error but a SIGBUS, which ends the process",
            "raise the limit (resources.limits.hugepages-2Mi of the pod), or lower --mem-mib",
        );
    }
}
